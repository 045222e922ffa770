"""Llama of transformers: grouped keys and values, rotary position embedding, gated feed-forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaAttention as LibraryAttention
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ..errors import UserError
from ..structure import AfterCut, Block, Mask, Rows, Tower, attention_site, blocks_named, count_setter, ffn_site
from .attend import attend, merge_heads, split_heads
from .caches import cache_in
from .stock import CutAttributes
from .stream import with_stream

MASKS = (Mask("attention_mask"),)


class LlamaAttention(LibraryAttention):  # type: ignore[misc]
    """LlamaAttention through attend(). Every layer keeps pairs of its own, so it picks its own cos and sin.

    pairs: the rotary pairs (i, i + d/2) of the original head that this layer still has.
    kv_heads: how many key/value heads are left.
    """

    pairs: Tensor
    kv_heads: int

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        is_causal: bool | None = None,
        **rest: Any,
    ) -> tuple[Tensor, None]:
        if not self.kv_heads:  # every head is gone
            return self._emptied(hidden_states, cache_in(rest)), None
        q = split_heads(self.q_proj(hidden_states), self.kv_heads * self.num_key_value_groups)  # (B, H, L, d)
        k = split_heads(self.k_proj(hidden_states), self.kv_heads)  # (B, K, L, d)
        v = split_heads(self.v_proj(hidden_states), self.kv_heads)  # (B, K, L, d)
        q, k = apply_rotary_pos_emb(q, k, *(self._kept(angles) for angles in position_embeddings))
        cache = cache_in(rest)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        causal = self.is_causal if is_causal is None else is_causal
        causal = causal and attention_mask is None and q.shape[2] > 1
        if causal:  # a static cache holds zeros beyond the prompt: hidden, but they cost time
            k, v = k[:, :, : q.shape[2]], v[:, :, : q.shape[2]]
        dropout = self.attention_dropout if self.training else 0.0
        out = attend(q, k, v, scale=self.scaling, mask=attention_mask, causal=causal, dropout=dropout)
        return self.o_proj(merge_heads(out)), None

    def _emptied(self, hidden_states: Tensor, cache: Any) -> Tensor:
        """(B, L, D), of nothing: what the output's bias adds. The cache counts what its layers have read."""
        if cache is not None:
            cache.update(hidden_states[:, None, :, :0], hidden_states[:, None, :, :0], self.layer_idx)
        states: Tensor = self.o_proj(hidden_states[..., :0])
        return states

    def _kept(self, angles: Tensor) -> Tensor:
        """(B, L, d) cos or sin of the original head -> those of the kept pairs."""
        half = angles.shape[-1] // 2
        if len(self.pairs) == half:
            return angles
        return angles[..., torch.cat([self.pairs, self.pairs + half])]


def adopt(module: nn.Module) -> nn.Module:
    """Give every Llama attention below `module` our forward; parameters and keys stay the library's."""
    layer: Any
    for layer in module.modules():
        if type(layer) is LibraryAttention:
            layer.__class__ = LlamaAttention
            layer.kv_heads = layer.k_proj.out_features // layer.head_dim
            # Not persistent: a saved model stores the kept units, and cutting on reload restores the pairs.
            pairs = torch.arange(layer.head_dim // 2, device=layer.k_proj.weight.device)
            layer.register_buffer("pairs", pairs, persistent=False)
    return module


def cut_attributes(module: nn.Module) -> CutAttributes:
    """For the library's class, which stores its softmax scale. rotary: the indices into cos and sin of what a cut layer
    keeps, which the library's does not pick by itself."""
    attributes: CutAttributes = {}
    for path, layer in module.named_modules():
        if isinstance(layer, LlamaAttention):
            pairs, half = layer.pairs.tolist(), int(layer.head_dim) // 2
            rotary = [*pairs, *(pair + half for pair in pairs)]
            attributes[path] = {"head_dim": len(rotary), **({"rotary": rotary} if len(pairs) < half else {})}, 1.0
    return attributes


def tower(
    module: nn.Module,
    prefix: str = "model.layers",
    name: str = "language",
    read_by: Sequence[str] | None = None,
    written_by: Sequence[str] = (),
) -> Tower:
    """The blocks of a Llama decoder. read_by, written_by: the Linears that take the states after its last norm, and
    those that make tokens beside its word embeddings; None: that is not said, and its residual stream cannot be
    narrowed."""
    blocks = []
    for index, path, block in blocks_named(module, prefix):
        attn: Any = block.self_attn
        if not isinstance(attn, LlamaAttention):
            raise UserError(f"{path} has {type(attn).__name__}, and nn/llama.py describes Llama's alone.")
        q, k, v = (Rows(f"{path}.self_attn.{part}_proj") for part in "qkv")
        sites = (
            attention_site(
                module, f"{name}.{index}.attention", modality="language", query=q, key=k, value=v,
                output=f"{path}.self_attn.o_proj", heads=attn.kv_heads * attn.num_key_value_groups,
                kv_heads=attn.kv_heads, rope=True, set_heads=count_setter(f"{path}.self_attn", "kv_heads"),
                after_cut=_pair_keeper(f"{path}.self_attn"),
            ),
            ffn_site(
                module, f"{name}.{index}.ffn", modality="language", up=f"{path}.mlp.up_proj",
                gate=f"{path}.mlp.gate_proj", down=f"{path}.mlp.down_proj",
                activation=block.mlp.act_fn,  # type: ignore[union-attr, arg-type]
            ),
        )  # fmt: skip
        blocks.append(Block(path, sites, masks=MASKS))
    tower = Tower(name, tuple(blocks))
    if read_by is None:
        return tower
    at = prefix.removesuffix("layers")
    return with_stream(
        module, tower, root=at.removesuffix("."), writes=[f"{at}embed_tokens", *written_by], norms=[f"{at}norm"],
        reads=read_by,
    )  # fmt: skip


def _pair_keeper(path: str) -> AfterCut:
    def keep(module: nn.Module, kept: Tensor) -> None:
        attn: Any = module.get_submodule(path)
        attn.pairs = attn.pairs[kept.to(attn.pairs.device)]

    return keep
