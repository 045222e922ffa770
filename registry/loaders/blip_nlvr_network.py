"""BLIP's NLVR2 head (Li et al. 2022, arXiv 2201.12086), which transformers does not have, of its parts: a ViT, and a
BERT each layer of which attends to both images."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as attend
from transformers.models.blip.modeling_blip import BlipAttention, BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel, BlipTextSelfAttention, BlipTextSelfOutput


class VisionAttention(BlipAttention):  # type: ignore[misc]
    """The library's takes the width of a head from that of the model, and cannot be cut."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        q, k, v = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = attend(q, k, v, dropout_p=self.dropout.p * self.training, scale=self.scale)
        return self.projection(out.transpose(1, 2).flatten(2)), None


class TwinCrossAttention(nn.Module):
    """One attention for each image. encoder_hidden_states (B, 2 N, D): the tokens of the left image, of the right."""

    def __init__(self, config: Any, layer: int, *, merge: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.self0, self.self1 = (BlipTextSelfAttention(config, True, layer) for _ in range(2))
        self.output: Any = BlipTextSelfOutput(config)
        self.output.dense0, self.output.dense1 = self.output.dense, nn.Linear(width, width)
        del self.output.dense
        if merge:
            self.output.merge_layer = nn.Linear(2 * width, width)

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        left, right = encoder_hidden_states.chunk(2, 1)
        a = self.output.dense0(self.self0(hidden_states, encoder_hidden_states=left)[0])
        b = self.output.dense1(self.self1(hidden_states, encoder_hidden_states=right)[0])
        merge = getattr(self.output, "merge_layer", None)
        both = (a + b) / 2 if merge is None else merge(torch.cat([a, b], -1))
        return self.output.LayerNorm(self.output.dropout(both) + hidden_states), None


class BlipNlvr(nn.Module):
    """Two images and a sentence, [ENC] first -> (B, 2) logits of false and true."""

    def __init__(self, config: Any, merge_from: int) -> None:
        super().__init__()
        self.vision_model: Any = BlipVisionModel(config.vision_config)
        self.text_encoder: Any = BlipTextModel(config.text_config, add_pooling_layer=False)
        for layer in self.vision_model.encoder.layers:
            layer.self_attn.__class__ = VisionAttention
        for index, layer in enumerate(self.text_encoder.encoder.layer):
            layer.crossattention = TwinCrossAttention(config.text_config, index, merge=index >= merge_from)
        width = config.text_config.hidden_size
        self.cls_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, left: Tensor, right: Tensor, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        images = [self.vision_model(pixel_values=image).last_hidden_state for image in (left, right)]
        states = self.text_encoder(ids, mask, encoder_hidden_states=torch.cat(images, 1)).last_hidden_state
        logits: Tensor = self.cls_head(states[:, 0])
        return logits
