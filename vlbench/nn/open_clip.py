"""CLIP of open_clip. Its nn.MultiheadAttention never calls out_proj and cannot be narrowed, so it is swapped.

The new module holds the same Parameter objects under the names of two Linears (qkv, out_proj). Checkpoints
with open_clip's own keys (in_proj_weight, in_proj_bias) load before and after the swap.
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from ..structure import Block, Mask, Rows, Tower, attention_site, blocks_named, count_setter, ffn_site, scale_setter
from .attend import attend, merge_heads, split_heads
from .stock import CutAttributes
from .stream import with_stream

MASKS = (Mask("attn_mask"),)


class SelfAttention(nn.Module):
    """What nn.MultiheadAttention computes on one sequence (batch first), through attend()."""

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        if not source.batch_first or source.in_proj_weight is None or source.bias_k is not None:
            raise ValueError("only plain, batch-first self-attention can be swapped")
        self.num_heads = source.num_heads
        self.scale = source.head_dim**-0.5
        self.dropout = source.dropout
        rows, width = source.in_proj_weight.shape
        self.qkv = nn.Linear(width, rows, bias=False, device="meta")
        self.qkv.weight = source.in_proj_weight
        self.qkv.bias = source.in_proj_bias
        self.out_proj = source.out_proj
        self.train(source.training)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, None]:
        """query, key and value must be one tensor. attn_mask: additive, or boolean with True = hidden."""
        if key is not query or value is not query:
            raise ValueError("this attention reads one sequence")
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = ~attn_mask  # nn.MultiheadAttention marks what is hidden, attend() what is visible
        q, k, v = (split_heads(x, self.num_heads) for x in self.qkv(query).chunk(3, -1))
        dropout = self.dropout if self.training else 0.0
        out = attend(q, k, v, scale=self.scale, mask=attn_mask, dropout=dropout)
        return self.out_proj(merge_heads(out)), None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A method and not a registered hook: hooks hold their module, and a deepcopy would keep the old one.
        for part in ("weight", "bias"):
            if f"{prefix}in_proj_{part}" in state_dict:
                state_dict[f"{prefix}qkv.{part}"] = state_dict.pop(f"{prefix}in_proj_{part}")
        super()._load_from_state_dict(state_dict, prefix, *args)


def adopt(module: nn.Module) -> nn.Module:
    """Swap the self-attention of every ResidualAttentionBlock below `module`; Parameters stay the same."""
    block: Any
    for block in module.modules():
        if isinstance(block, ResidualAttentionBlock) and type(block.attn) is nn.MultiheadAttention:
            block.attn = SelfAttention(block.attn)
    return module


def rescale(module: nn.Module) -> None:
    """Divide by the root of what is left of each head, as checkpoints cut by UPop were trained (torch's attention reads
    the scale from the shape). Ours keep the scale of the whole head."""
    for layer in module.modules():
        if isinstance(layer, SelfAttention):
            layer.scale = (int(layer.qkv.weight.shape[0]) // (3 * layer.num_heads)) ** -0.5


def cut_attributes(module: nn.Module) -> CutAttributes:
    """For a class that takes the place of nn.MultiheadAttention, which cannot be cut."""
    layers = ((path, layer) for path, layer in module.named_modules() if isinstance(layer, SelfAttention))
    return {path: ({"num_heads": layer.num_heads, "scale": layer.scale}, 1.0) for path, layer in layers}


def vision_tower(module: nn.Module, prefix: str = "visual.transformer.resblocks", name: str = "vision") -> Tower:
    """The blocks of CLIP's ViT."""
    at = prefix.removesuffix("transformer.resblocks")
    return with_stream(
        module, _tower(module, prefix, name, "vision"), root=at.removesuffix("."), writes=[f"{at}conv1"],
        tables=[f"{at}class_embedding", f"{at}positional_embedding"], norms=[f"{at}ln_pre", f"{at}ln_post"],
        products=[f"{at}proj"],
    )  # fmt: skip


def text_tower(module: nn.Module, prefix: str = "transformer.resblocks", name: str = "text") -> Tower:
    """The blocks of CLIP's text transformer."""
    at = prefix.removesuffix("transformer.resblocks")
    return with_stream(
        module, _tower(module, prefix, name, "language"), writes=[f"{at}token_embedding"],
        tables=[f"{at}positional_embedding"], norms=[f"{at}ln_final"], products=[f"{at}text_projection"],
        reads=[f"{at}text_projection"],
    )  # fmt: skip


def _tower(module: nn.Module, prefix: str, name: str, modality: str) -> Tower:
    blocks = []
    for index, path, block in blocks_named(module, prefix):
        attn: Any = block.attn
        rows = int(attn.qkv.weight.shape[0]) // 3
        q, k, v = (Rows(f"{path}.attn.qkv", i * rows) for i in range(3))
        sites = (
            attention_site(
                module, f"{name}.{index}.attention", modality=modality, query=q, key=k, value=v,
                output=f"{path}.attn.out_proj", heads=attn.num_heads,
                set_heads=count_setter(f"{path}.attn", "num_heads"), rescale=scale_setter(f"{path}.attn"),
            ),
            ffn_site(
                module, f"{name}.{index}.ffn", modality=modality, up=f"{path}.mlp.c_fc",
                down=f"{path}.mlp.c_proj", activation=block.mlp.gelu,  # type: ignore[union-attr, arg-type]
            ),
        )  # fmt: skip
        blocks.append(Block(path, sites, masks=MASKS))
    return Tower(name, tuple(blocks))
