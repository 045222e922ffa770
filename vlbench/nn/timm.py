"""ViT attention of timm (fused qkv)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..errors import UserError
from ..structure import Block, Mask, Rows, Tower, attention_site, blocks_named, count_setter, ffn_site
from .attend import attend, merge_heads, split_heads
from .stock import CutAttributes, query_factor
from .stream import with_stream

_TABLES = ("cls_token", "reg_token", "dist_token", "pos_embed")


class VisionAttention(Attention):  # type: ignore[misc]
    """timm's Attention through attend(). timm hands SDPA no scale, so that a cut layer would silently change it."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        q, k, v = (split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, -1))
        if self.num_heads:  # a norm of the head's width has nothing to norm where every head is gone
            q, k = self.q_norm(q), self.k_norm(k)
        dropout = self.attn_drop.p if self.training else 0.0
        out = attend(q, k, v, scale=self.scale, mask=attn_mask, causal=is_causal, dropout=dropout)
        out = self.norm(merge_heads(out))
        if self.gate is not None:
            out = out * self.gate(x).sigmoid()
        projected: Tensor = self.proj_drop(self.proj(out))
        return projected


def adopt(module: nn.Module) -> nn.Module:
    """Give every timm Attention below `module` our forward; parameters and keys stay timm's."""
    for layer in module.modules():
        if type(layer) is Attention:
            layer.__class__ = VisionAttention
    return module


def vision_tower(
    module: nn.Module,
    prefix: str = "blocks",
    name: str = "vision",
    count: int | None = None,
    read_by: Sequence[str] | None = (),
) -> Tower:
    """The first `count` blocks (all where it is left out) of a timm VisionTransformer. read_by: what else than its own
    heads reads its residual stream; None: that is not said, and the stream cannot be narrowed."""
    blocks = []
    for index, path, block in blocks_named(module, prefix):
        attn: Any = block.attn
        _refuse_others(path, attn, block.mlp)
        rows = int(attn.qkv.weight.shape[0]) // 3
        q, k, v = (Rows(f"{path}.attn.qkv", i * rows) for i in range(3))
        sites = (
            attention_site(
                module, f"{name}.{index}.attention", modality="vision", query=q, key=k, value=v,
                output=f"{path}.attn.proj", heads=attn.num_heads, set_heads=count_setter(f"{path}.attn", "num_heads"),
                refusals=_refusals(attn),
            ),
            ffn_site(
                module, f"{name}.{index}.ffn", modality="vision", up=f"{path}.mlp.fc1", down=f"{path}.mlp.fc2",
                activation=block.mlp.act,  # type: ignore[union-attr, arg-type]
            ),
        )  # fmt: skip
        blocks.append(Block(path, sites, masks=(Mask("attn_mask"),)))
    tower = Tower(name, tuple(blocks[:count]))
    root = prefix.rpartition(".")[0]
    if read_by is None or not isinstance(module.get_submodule(root), VisionTransformer):
        return tower
    at = f"{root}." if root else ""
    return with_stream(
        module, tower, root=root, unread=blocks[len(tower.blocks) :],
        writes=[f"{at}patch_embed.proj"], tables=[f"{at}{part}" for part in _TABLES],
        norms=[f"{at}{part}" for part in ("norm_pre", "norm", "fc_norm")], reads=[f"{at}head", *read_by],
    )  # fmt: skip


def cut_attributes(module: nn.Module) -> CutAttributes:
    """For timm's Attention, which divides by the root of the cut head's width."""
    by_path: CutAttributes = {}
    for path, layer in module.named_modules():
        if isinstance(layer, VisionAttention):
            heads = int(layer.num_heads)
            width = int(layer.qkv.weight.shape[0]) // (3 * heads) if heads else 0
            scale = width**-0.5 if width else 1.0  # of no width: nothing is scaled
            attributes = {"num_heads": heads, "head_dim": width, "attn_dim": heads * width, "scale": scale}
            by_path[path] = attributes, query_factor(layer.scale, width) if width else 1.0
    return by_path


def _refuse_others(path: str, attn: Any, mlp: Any) -> None:
    """Raise UserError for layers that would be described wrongly: rotary ones, and a feed-forward layer whose first
    Linear holds two branches."""
    if not isinstance(attn, Attention) or (mlp.fc1.out_features if hasattr(mlp, "fc1") else 0) != mlp.fc2.in_features:
        layer = mlp if isinstance(attn, Attention) else attn
        raise UserError(f"{path} has timm's {type(layer).__name__}, and vlbench knows no legal cut of it.")


def _refusals(attn: Any) -> dict[str, str]:
    if not isinstance(attn.q_norm, nn.Identity):
        return {"dim": "QK-norm runs over the width of the head, so a removed dimension changes the others"}
    if attn.gate is not None or not isinstance(attn.norm, nn.Identity):
        raise ValueError("timm's gated or output-normalised attention has parts that no slice describes yet")
    return {}
