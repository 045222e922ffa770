"""T5 of transformers: relative position bias, no softmax scale, encoder, decoder and cross-attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import EncoderDecoderCache
from transformers.models.t5.modeling_t5 import T5Attention as LibraryAttention

from ..structure import Block, Mask, Rows, Site, Tower, attention_site, blocks_named, ffn_site
from .attend import Shared, attend, merge_heads, split_heads
from .caches import cache_in
from .stock import CutAttributes

MASKS = (Mask("attention_mask"), Mask("encoder_attention_mask", of="encoder_hidden_states"))

_HEADS = "block 0 makes the position bias of every layer, with one entry per head"
_FIRST = "it makes the position bias of every layer"
_SHARED = "encoder and decoder share one matrix of word embeddings, which only one of the two widths could be cut to"


class T5Attention(LibraryAttention):  # type: ignore[misc]
    """T5's attention through attend(). transformers passes no mask where `is_causal` says the same thing."""

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None = None,
        key_value_states: Tensor | Shared | None = None,
        position_bias: Tensor | None = None,
        is_causal: bool | None = None,
        **rest: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        if isinstance(key_value_states, Shared):
            return self._shared(hidden_states, key_value_states), position_bias, None
        cache = cache_in(rest)
        past = 0 if cache is None else cache.get_seq_length(self.layer_idx)
        if isinstance(past, Tensor):
            past = past.clone()  # a static cache advances its own counter in place
        q = split_heads(self.q(hidden_states), self.n_heads)  # (B, H, L, d)
        k, v = self._keys_values(hidden_states, key_value_states, cache)
        length = q.shape[2]
        if position_bias is None and self.has_relative_attention_bias:
            position_bias = self.compute_bias(length, k.shape[2], device=q.device, past_seen_tokens=past)
        causal = self.is_causal if is_causal is None else is_causal
        causal = causal and mask is None and length > 1
        mask = _additive(position_bias, mask, causal)
        dropout = self.dropout if self.training else 0.0
        out = attend(q, k, v, scale=self.scaling, mask=mask, causal=causal and mask is None, dropout=dropout)
        return self.o(merge_heads(out)), position_bias, None

    def _shared(self, hidden: Tensor, context: Shared) -> Tensor:
        """Cross-attention to encoder states that many rows read; their mask is their own."""
        q = split_heads(self.q(hidden), self.n_heads)  # (R, H, L, d)
        k, v = context.keys_values(self.k, self.v, self.n_heads)
        dropout = self.dropout if self.training else 0.0
        out: Tensor = self.o(merge_heads(context.attend(q, k, v, scale=self.scaling, dropout=dropout)))
        return out

    def _keys_values(self, hidden: Tensor, encoder: Tensor | None, cache: Any) -> tuple[Tensor, Tensor]:
        both = isinstance(cache, EncoderDecoderCache)
        if both and encoder is not None and cache.is_updated.get(self.layer_idx):
            layer = cache.cross_attention_cache.layers[self.layer_idx]
            return layer.keys, layer.values
        source = hidden if encoder is None else encoder
        k, v = split_heads(self.k(source), self.n_heads), split_heads(self.v(source), self.n_heads)
        if cache is None:
            return k, v
        store = cache
        if both:
            store = cache.self_attention_cache if encoder is None else cache.cross_attention_cache
        k, v = store.update(k, v, self.layer_idx)
        if both and encoder is not None:
            cache.is_updated[self.layer_idx] = True
        return k, v


def _additive(bias: Tensor | None, mask: Tensor | None, causal: bool) -> Tensor | None:
    """Position bias and mask (additive, or True = visible) as one mask; cross-attention has no bias."""
    if bias is None:
        return mask
    if causal:  # SDPA takes a mask or `is_causal`, and the bias is a mask
        mask = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).tril()  # (Lq, Lk)
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        return bias.masked_fill(~mask, torch.finfo(bias.dtype).min)
    return bias + mask


def adopt(module: nn.Module) -> nn.Module:
    """Give every T5 attention below `module` our forward; parameters and keys stay the library's."""
    for layer in module.modules():
        if type(layer) is LibraryAttention:
            layer.__class__ = T5Attention
    return module


def cut_attributes(module: nn.Module) -> CutAttributes:
    """For the library's class, which has no softmax scale."""
    attributes: CutAttributes = {}
    for path, layer in module.named_modules():
        if isinstance(layer, T5Attention):
            rows = int(layer.q.weight.shape[0])
            attributes[path] = {"key_value_proj_dim": rows // int(layer.n_heads), "inner_dim": rows}, 1.0
    return attributes


def tower(module: nn.Module, prefix: str, name: str) -> Tower:
    """The blocks of a T5 encoder or decoder (`prefix` ends in "encoder.block" or "decoder.block")."""
    blocks = []
    for index, path, block in blocks_named(module, prefix):
        at = f"{name}.{index}"
        sites = [_attention(module, f"{at}.self", "language", f"{path}.layer.0.SelfAttention")]
        if block.is_decoder:
            sites.append(_attention(module, f"{at}.cross", "cross", f"{path}.layer.1.EncDecAttention"))
        last = len(block.layer) - 1  # type: ignore[arg-type]
        sites.append(_ffn(module, f"{at}.ffn", f"{path}.layer.{last}.DenseReluDense"))
        blocks.append(Block(path, tuple(sites), "" if index else _FIRST, masks=MASKS))
    return Tower(name, tuple(blocks), stream=_SHARED)


def _attention(module: nn.Module, name: str, modality: str, path: str) -> Site:
    layer: Any = module.get_submodule(path)
    q, k, v = (Rows(f"{path}.{part}") for part in "qkv")
    return attention_site(
        module, name, modality=modality, query=q, key=k, value=v, output=f"{path}.o",
        heads=layer.n_heads, refusals={"head": _HEADS},
    )  # fmt: skip


def _ffn(module: nn.Module, name: str, path: str) -> Site:
    layer: Any = module.get_submodule(path)
    gated = hasattr(layer, "wi_1")
    return ffn_site(
        module, name, modality="language", up=f"{path}.wi_1" if gated else f"{path}.wi", down=f"{path}.wo",
        activation=layer.act, gate=f"{path}.wi_0" if gated else None,
    )  # fmt: skip
