"""Q-Former of BLIP-2 and InstructBLIP: self-attention of queries and text, cross-attention in some layers."""

from __future__ import annotations

from copy import copy
from typing import Any

from torch import Tensor, nn
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerMultiHeadAttention
from transformers.models.instructblip.modeling_instructblip import InstructBlipQFormerMultiHeadAttention

from ..structure import AfterCut, Block, Mask, Rows, Site, Tower, attention_site, blocks_named, count_setter, ffn_site
from .attend import Shared, attend, merge_heads, split_heads
from .stock import CutAttributes

MASKS = (Mask("attention_mask"), Mask("encoder_attention_mask", of="encoder_hidden_states"))


def _forward(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: Tensor | Shared | None = None,
    encoder_attention_mask: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    heads, dropout = self.num_attention_heads, self.attention_dropout if self.training else 0.0
    q = split_heads(self.query(hidden_states), heads)  # (B, H, Lq, d)
    if isinstance(encoder_hidden_states, Shared):
        k, v = encoder_hidden_states.keys_values(self.key, self.value, heads)
        return merge_heads(encoder_hidden_states.attend(q, k, v, scale=self.scaling, dropout=dropout)), None
    cross = encoder_hidden_states is not None
    source = encoder_hidden_states if cross else hidden_states
    mask = encoder_attention_mask if cross else attention_mask
    k, v = split_heads(self.key(source), heads), split_heads(self.value(source), heads)  # (B, H, Lk, d) each
    return merge_heads(attend(q, k, v, scale=self.scaling, mask=mask, dropout=dropout)), None


class Blip2Attention(Blip2QFormerMultiHeadAttention):  # type: ignore[misc]
    """BLIP-2's Q-Former attention, self or cross, through attend()."""

    forward = _forward


class InstructBlipAttention(InstructBlipQFormerMultiHeadAttention):  # type: ignore[misc]
    """InstructBLIP's Q-Former attention, self or cross, through attend()."""

    forward = _forward


_OURS = {
    Blip2QFormerMultiHeadAttention: Blip2Attention,
    InstructBlipQFormerMultiHeadAttention: InstructBlipAttention,
}


def adopt(module: nn.Module) -> nn.Module:
    """Give every Q-Former attention below `module` our forward; parameters and keys stay the library's."""
    layer: Any
    for layer in module.modules():
        layer.__class__ = _OURS.get(type(layer), type(layer))
    return module


def cut_attributes(module: nn.Module) -> CutAttributes:
    """For the library's classes, which store their softmax scale."""
    attributes: CutAttributes = {}
    for path, layer in module.named_modules():
        if isinstance(layer, Blip2Attention | InstructBlipAttention):
            heads, rows = int(layer.num_attention_heads), int(layer.query.weight.shape[0])
            sizes = {"num_attention_heads": heads, "attention_head_size": rows // heads, "all_head_size": rows}
            attributes[path] = sizes, 1.0
    return attributes


def tower(module: nn.Module, prefix: str = "qformer.encoder.layer", name: str = "qformer") -> Tower:
    """The blocks of a Q-Former. The feed-forward of the queries and that of the text are two sites."""
    blocks = []
    for index, path, block in blocks_named(module, prefix):
        at = f"{name}.{index}"
        sites = [_attention(module, f"{at}.self", "query", f"{path}.attention")]
        if block.has_cross_attention:
            sites.append(_attention(module, f"{at}.cross", "cross", f"{path}.crossattention"))
        sites.append(_ffn(module, f"{at}.query_ffn", "query", path, "_query"))
        if hasattr(block, "intermediate"):  # BLIP-2 for generation has no text inside its Q-Former
            sites.append(_ffn(module, f"{at}.text_ffn", "language", path, ""))
        blocks.append(Block(path, tuple(sites), masks=MASKS))
    return Tower(name, tuple(blocks), _counter(prefix.rpartition(".")[0]))


def _counter(path: str) -> AfterCut:
    """The encoder counts its layers by its configuration."""

    def count(module: nn.Module, kept: Tensor) -> None:
        encoder: Any = module.get_submodule(path)
        encoder.config = copy(encoder.config)
        encoder.config.num_hidden_layers = len(kept)

    return count


def _attention(module: nn.Module, name: str, modality: str, path: str) -> Site:
    layer: Any = module.get_submodule(f"{path}.attention")
    q, k, v = (Rows(f"{path}.attention.{part}") for part in ("query", "key", "value"))
    return attention_site(
        module, name, modality=modality, query=q, key=k, value=v, output=f"{path}.output.dense",
        heads=layer.num_attention_heads, set_heads=count_setter(f"{path}.attention", "num_attention_heads"),
    )  # fmt: skip


def _ffn(module: nn.Module, name: str, modality: str, path: str, which: str) -> Site:
    up: Any = module.get_submodule(f"{path}.intermediate{which}")
    return ffn_site(
        module, name, modality=modality, up=f"{path}.intermediate{which}.dense",
        down=f"{path}.output{which}.dense", activation=up.intermediate_act_fn,
    )  # fmt: skip
