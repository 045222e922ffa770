"""BLIP of transformers: its vision attention, its text attention (self and cross) and NLVR2's twin cross-attention.

transformers 5.23 drops the padding mask of cross-attention (BlipTextLayer hands it on as attention_mask, and the
attention reads another argument): decoder logits with a padded question differ by 0.35. The forward here reads the
mask it is given, as the Salesforce code does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention

from ..structure import (
    Block,
    Mask,
    Rows,
    Site,
    Tower,
    attention_site,
    blocks_named,
    count_setter,
    ffn_site,
    scale_setter,
)
from .attend import Shared, attend, merge_heads, split_heads
from .caches import cache_in
from .stock import CutAttributes, query_factor
from .stream import with_stream

TEXT_MASKS = (Mask("attention_mask"), Mask("encoder_attention_mask", of="encoder_hidden_states"))


class VisionAttention(BlipAttention):  # type: ignore[misc]
    """BlipAttention through attend(): any kept width, the original scale."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        q, k, v = (split_heads(x, self.num_heads) for x in self.qkv(hidden_states).chunk(3, -1))
        dropout = self.dropout.p if self.training else 0.0
        return self.projection(merge_heads(attend(q, k, v, scale=self.scale, dropout=dropout))), None


class TextAttention(BlipTextSelfAttention):  # type: ignore[misc]
    """BlipTextSelfAttention, self or cross, through attend(), with the mask honoured and keys shared."""

    scale: float

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | Shared | None = None,
        encoder_attention_mask: Tensor | None = None,
        **rest: Any,
    ) -> tuple[Tensor, None]:
        heads = self.num_attention_heads
        dropout = self.dropout.p if self.training else 0.0
        q = split_heads(self.query(hidden_states), heads)  # (B, H, L, d)
        if isinstance(encoder_hidden_states, Shared):
            k, v = encoder_hidden_states.keys_values(self.key, self.value, heads)
            return merge_heads(encoder_hidden_states.attend(q, k, v, scale=self.scale, dropout=dropout)), None
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        k, v = split_heads(self.key(source), heads), split_heads(self.value(source), heads)
        cache = cache_in(rest)
        if cache is not None and encoder_hidden_states is None:
            self_cache = getattr(cache, "self_attention_cache", cache)
            k, v = self_cache.update(k, v, self.layer_idx)
        mask = attention_mask if encoder_attention_mask is None else encoder_attention_mask
        return merge_heads(attend(q, k, v, scale=self.scale, mask=mask, dropout=dropout)), None


class TwinCrossAttention(nn.Module):
    """NLVR2's cross-attention: two images, two attentions self0 and self1 over one text (BLIP, arXiv 2201.12086).

    Layers below `merge_from` (6) average the two outputs, the others concatenate and project them (merge_layer).
    encoder_hidden_states: a pair of Shared (left, right), or the two images' tokens joined on dim 1.
    """

    def __init__(self, config: Any, layer: int, *, merge: bool) -> None:
        super().__init__()
        self.self0 = BlipTextSelfAttention(config, True, layer)
        self.self1 = BlipTextSelfAttention(config, True, layer)
        width = config.hidden_size
        self.output: Any = nn.Module()
        self.output.dense0 = nn.Linear(width, width)
        self.output.dense1 = nn.Linear(width, width)
        self.output.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.output.dropout = nn.Dropout(config.hidden_dropout_prob)
        if merge:
            self.output.merge_layer = nn.Linear(2 * width, width)

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Any = None, **_: Any) -> tuple[Tensor, None]:
        left, right = (
            encoder_hidden_states if isinstance(encoder_hidden_states, tuple) else encoder_hidden_states.chunk(2, 1)
        )
        out = self.output
        a = out.dense0(self.self0(hidden_states, encoder_hidden_states=left)[0])  # (B, L, D)
        b = out.dense1(self.self1(hidden_states, encoder_hidden_states=right)[0])
        both = out.merge_layer(torch.cat([a, b], -1)) if hasattr(out, "merge_layer") else (a + b) / 2
        return out.LayerNorm(out.dropout(both) + hidden_states), None


def adopt(module: nn.Module) -> nn.Module:
    """Give every BLIP attention below `module` our forward; parameters and keys stay the library's."""
    layer: Any
    for layer in module.modules():
        if type(layer) is BlipAttention:
            layer.__class__ = VisionAttention
        elif type(layer) is BlipTextSelfAttention:
            layer.__class__ = TextAttention
            layer.scale = layer.attention_head_size**-0.5
    return module


def scale_by_kept_width(module: nn.Module) -> None:
    """Divide by the root of the *kept* head size in every text attention below `module`, as UPop's code does after it
    has cut one, and trains on so. The ViT keeps the original head size there as well."""
    for layer in module.modules():
        if isinstance(layer, TextAttention):
            layer.scale = (layer.query.weight.shape[0] // layer.num_attention_heads) ** -0.5


def cut_attributes(module: nn.Module) -> CutAttributes:
    """For BlipTextSelfAttention, which divides by the root of the cut head's width, and for a class that does what
    BlipAttention does at any width: the library's own reads it off the hidden states."""
    attributes: CutAttributes = {}
    for path, layer in module.named_modules():
        if isinstance(layer, VisionAttention):
            attributes[path] = {"num_heads": int(layer.num_heads), "scale": float(layer.scale)}, 1.0
        elif isinstance(layer, TextAttention):
            heads, rows = int(layer.num_attention_heads), int(layer.query.weight.shape[0])
            sizes = {"num_attention_heads": heads, "attention_head_size": rows // heads, "all_head_size": rows}
            attributes[path] = sizes, query_factor(layer.scale, rows // heads)
    return attributes


def resized_positions(positions: Tensor, count: int) -> Tensor:
    """(1, 1 + n, D) position embeddings for `count` tokens: bicubic, the class token's as it is (BLIP's models/vit.py,
    interpolate_pos_embed)."""
    old, new = (int((n - 1) ** 0.5) for n in (positions.shape[1], count))
    if old == new:
        return positions
    grid = positions[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)  # (1, D, old, old)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)  # (1, D, new, new)
    return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)


def first_states(text: Any, ids: Tensor, context: Shared | None = None) -> Tensor:
    """(R, H) final states of the first token of the texts ids (R, L), which have no padding; context: of the images.

    text: a BlipTextModel. All that is read of its last layer is this token, so that only keys and values are computed
    for the others there.
    """
    hidden = text.embeddings(input_ids=ids)  # (R, L, H)
    *layers, last = text.encoder.layer
    for layer in layers:
        hidden = layer(hidden, context)
    first = hidden[:, :1]  # (R, 1, H)
    attention = last.attention
    first = attention.output(attention.self(first, encoder_hidden_states=hidden)[0], first)
    if context is not None:
        first = last.crossattention(first, encoder_hidden_states=context)[0]
    states: Tensor = last.feed_forward_chunk(first)[:, 0]
    return states


def vision_tower(
    module: nn.Module,
    prefix: str = "vision_model.encoder.layers",
    name: str = "vision",
    read_by: Sequence[str] | None = None,
) -> Tower:
    """The ViT of BLIP (and of BLIP-2, which has the same layers). read_by: the Linears that take its states; None: that
    is not said, and its residual stream cannot be narrowed."""
    blocks = []
    for index, path, block in blocks_named(module, prefix):
        attn = f"{path}.self_attn"
        rows = int(block.self_attn.qkv.weight.shape[0]) // 3  # type: ignore[union-attr, index]
        q, k, v = (Rows(f"{attn}.qkv", i * rows) for i in range(3))
        sites = (
            attention_site(
                module, f"{name}.{index}.attention", modality="vision", query=q, key=k, value=v,
                output=f"{attn}.projection", heads=block.self_attn.num_heads,  # type: ignore[union-attr, arg-type]
                set_heads=count_setter(attn, "num_heads"),
            ),
            ffn_site(
                module, f"{name}.{index}.ffn", modality="vision", up=f"{path}.mlp.fc1", down=f"{path}.mlp.fc2",
                activation=block.mlp.activation_fn,  # type: ignore[union-attr, arg-type]
            ),
        )  # fmt: skip
        blocks.append(Block(path, sites))
    tower = Tower(name, tuple(blocks))
    if read_by is None:
        return tower
    at = prefix.removesuffix("encoder.layers")
    inside = f"{at}embeddings."
    return with_stream(
        module, tower, root=at.removesuffix("."), reads=read_by, writes=[f"{inside}patch_embedding"],
        tables=[f"{inside}class_embedding", f"{inside}position_embedding"], norms=[f"{at}post_layernorm"],
    )  # fmt: skip


def text_tower(module: nn.Module, prefix: str, name: str, read_by: Sequence[str] | None = None) -> Tower:
    """A BERT-like text tower: self-attention, cross-attention where there is one (plain or twin), feed-forward.
    read_by: the Linears that take its states, but for its own head of words; None: that is not said, and its residual
    stream cannot be narrowed."""
    blocks = []
    for index, path, block in blocks_named(module, prefix):
        blocks.append(Block(path, tuple(_text_sites(module, f"{name}.{index}", path, block)), masks=TEXT_MASKS))
    tower = Tower(name, tuple(blocks))
    if read_by is None:
        return tower
    root = prefix.removesuffix("encoder.layer")
    words, inside = f"{root.removesuffix('bert.')}cls.predictions", f"{root}embeddings."
    # The matrix of words is tied to their embeddings, so that what is before it has the stream's dimensions, too.
    return with_stream(
        module, tower, root=root.removesuffix("."),
        writes=[f"{inside}word_embeddings", f"{inside}position_embeddings", f"{words}.transform.dense"],
        norms=[f"{inside}LayerNorm", f"{words}.transform.LayerNorm"],
        reads=[f"{words}.transform.dense", f"{words}.decoder", *read_by],
    )  # fmt: skip


def _text_sites(module: nn.Module, at: str, path: str, block: Any) -> Iterator[Site]:
    """Of one block: self-attention, its cross-attentions, and the feed-forward part."""
    yield _text_attention(module, f"{at}.self", "language", f"{path}.attention.self", f"{path}.attention.output.dense")
    cross, inside = getattr(block, "crossattention", None), f"{path}.crossattention"
    if cross is not None:
        for i in ("0", "1") if isinstance(cross, TwinCrossAttention) else ("",):
            yield _text_attention(module, f"{at}.cross{i}", "cross", f"{inside}.self{i}", f"{inside}.output.dense{i}")
    yield ffn_site(
        module, f"{at}.ffn", modality="language", up=f"{path}.intermediate.dense", down=f"{path}.output.dense",
        activation=ACT2FN[block.config.hidden_act],
    )  # fmt: skip


def _text_attention(module: nn.Module, name: str, modality: str, path: str, output: str) -> Site:
    layer = module.get_submodule(path)
    q, k, v = (Rows(f"{path}.{part}") for part in ("query", "key", "value"))
    return attention_site(
        module, name, modality=modality, query=q, key=k, value=v, output=output,
        heads=layer.num_attention_heads,  # type: ignore[arg-type]
        set_heads=count_setter(path, "num_attention_heads"), rescale=scale_setter(path),
    )  # fmt: skip
