"""OPT of transformers: causal attention with biases everywhere, learned positions, a plain feed-forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers.models.opt.modeling_opt import OPTAttention as LibraryAttention

from ..structure import Block, Mask, Rows, Tower, attention_site, blocks_named, count_setter, ffn_site
from .attend import attend, merge_heads, split_heads
from .caches import cache_in
from .stock import CutAttributes
from .stream import with_stream

MASKS = (Mask("attention_mask"),)


class OPTAttention(LibraryAttention):  # type: ignore[misc]
    """OPTAttention through attend(): any kept width, the original scale."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        **rest: Any,
    ) -> tuple[Tensor, None]:
        q, k, v = (split_heads(p(hidden_states), self.num_heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        cache = cache_in(rest)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        causal = attention_mask is None and q.shape[2] > 1  # no mask: nothing is padded and nothing came before
        dropout = self.dropout if self.training else 0.0
        out = attend(q, k, v, scale=self.scaling, mask=attention_mask, causal=causal, dropout=dropout)
        return self.out_proj(merge_heads(out)), None


def adopt(module: nn.Module) -> nn.Module:
    """Give every OPT attention below `module` our forward; parameters and keys stay the library's."""
    for layer in module.modules():
        if type(layer) is LibraryAttention:
            layer.__class__ = OPTAttention
    return module


def cut_attributes(module: nn.Module) -> CutAttributes:
    """For the library's class, which stores its softmax scale."""
    attributes: CutAttributes = {}
    for path, layer in module.named_modules():
        if isinstance(layer, OPTAttention):
            heads, rows = int(layer.num_heads), int(layer.q_proj.weight.shape[0])
            attributes[path] = {"num_heads": heads, "head_dim": rows // heads}, 1.0
    return attributes


def tower(
    module: nn.Module,
    prefix: str = "model.decoder.layers",
    name: str = "language",
    read_by: Sequence[str] | None = None,
    written_by: Sequence[str] = (),
) -> Tower:
    """The blocks of an OPT decoder. read_by, written_by: as of llama.tower."""
    blocks = []
    for index, path, layer in blocks_named(module, prefix):
        block: Any = layer
        attn = f"{path}.self_attn"
        q, k, v = (Rows(f"{attn}.{part}_proj") for part in "qkv")
        sites = (
            attention_site(
                module, f"{name}.{index}.attention", modality="language", query=q, key=k, value=v,
                output=f"{attn}.out_proj", heads=block.self_attn.num_heads, set_heads=count_setter(attn, "num_heads"),
            ),
            ffn_site(
                module, f"{name}.{index}.ffn", modality="language", up=f"{path}.fc1", down=f"{path}.fc2",
                activation=block.activation_fn,
            ),
        )  # fmt: skip
        blocks.append(Block(path, sites, masks=MASKS))
    tower = Tower(name, tuple(blocks))
    at = prefix.removesuffix("layers")
    decoder: Any = module.get_submodule(at.removesuffix("."))
    if read_by is None or decoder.project_in is not None:
        return tower
    return with_stream(
        module, tower, root=at.removesuffix("."), norms=[f"{at}final_layer_norm"], reads=read_by,
        writes=[f"{at}embed_tokens", f"{at}embed_positions", *written_by],
    )  # fmt: skip
