"""Keys of the original BLIP checkpoints (salesforce/BLIP, UPop) -> keys of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

VISION = (
    (r"^visual_encoder\.(blocks\.\d+)\.attn\.qkv", r"vision_model.encoder.\1.self_attn.qkv"),
    (r"^visual_encoder\.(blocks\.\d+)\.attn\.proj", r"vision_model.encoder.\1.self_attn.projection"),
    (r"^visual_encoder\.(blocks\.\d+)\.norm(\d)", r"vision_model.encoder.\1.layer_norm\2"),
    (r"^visual_encoder\.(blocks\.\d+)\.mlp", r"vision_model.encoder.\1.mlp"),
    (r"^visual_encoder\.norm", r"vision_model.post_layernorm"),
    (r"^visual_encoder\.patch_embed\.proj", r"vision_model.embeddings.patch_embedding"),
    (r"^visual_encoder\.pos_embed", r"vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.cls_token", r"vision_model.embeddings.class_embedding"),
    (r"^(vision_model\.encoder)\.blocks", r"\1.layers"),
)
# Buffers that transformers rebuilds, UPop's masks, and what retrieval trains with: the momentum twins and their queues.
DROPPED = re.compile(r"position_ids$|\.alpha$|^text_encoder\.pooler|^\w+_m\.|^(?:image|text|idx|ptr)_queue$")


def is_original(keys: Mapping[str, Tensor]) -> bool:
    """Whether these are keys of the original project."""
    return any(key.startswith("visual_encoder.") for key in keys)


def converted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under transformers' names; values are not changed."""
    renamed: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if DROPPED.search(key):
            continue
        for pattern, name in VISION:
            key = re.sub(pattern, name, key)
        renamed[key] = value
    return renamed
