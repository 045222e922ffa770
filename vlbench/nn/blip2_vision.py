"""The ViT of transformers' BLIP-2 and InstructBLIP (EVA-CLIP's): one class each, the same layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.models.blip_2.modeling_blip_2 import Blip2Attention
from transformers.models.instructblip.modeling_instructblip import InstructBlipAttention

from .attend import attend, merge_heads, split_heads
from .blip import vision_tower
from .stock import CutAttributes

__all__ = ["adopt", "cut_attributes", "vision_tower"]


def _forward(self: Any, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
    """Any kept width, the original scale."""
    q, k, v = (split_heads(x, self.num_heads) for x in self.qkv(hidden_states).chunk(3, -1))
    dropout = float(self.attention_dropout) if self.training else 0.0
    return self.projection(merge_heads(attend(q, k, v, scale=self.scale, dropout=dropout))), None


class Blip2VisionAttention(Blip2Attention):  # type: ignore[misc]
    """BLIP-2's through attend()."""

    forward = _forward


class InstructBlipVisionAttention(InstructBlipAttention):  # type: ignore[misc]
    """InstructBLIP's through attend()."""

    forward = _forward


_OURS = {Blip2Attention: Blip2VisionAttention, InstructBlipAttention: InstructBlipVisionAttention}


def adopt(module: nn.Module) -> nn.Module:
    """Give every such attention below `module` our forward; parameters and keys stay the library's."""
    layer: Any
    for layer in module.modules():
        layer.__class__ = _OURS.get(type(layer), type(layer))
    return module


def cut_attributes(module: nn.Module) -> CutAttributes:
    """For a class that does what the library's does at any width: its own reads it off the hidden states."""
    attributes: CutAttributes = {}
    for path, layer in module.named_modules():
        if isinstance(layer, Blip2VisionAttention | InstructBlipVisionAttention):
            attributes[path] = {"num_heads": int(layer.num_heads)}, 1.0
    return attributes
