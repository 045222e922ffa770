"""LLaVA-NeXT (LLaVA-1.6, Liu et al. 2024, llava-vl.github.io/blog/2024-01-30-llava-next) on transformers: CLIP, an MLP
and Vicuna or Mistral.

An image is read whole and in tiles of 336 pixels, of the listed shape that fits it best; what was padded goes, and
every row ends with a learned token (`image_newline`). The image tokens are those after the last vision block but one:
the last block and the norm after it are never read. They are not computed, and not in the prunable set.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlbench.errors import UserError
from vlbench.images.view import View
from vlbench.model import family
from vlbench.nn import clip_vision

from ._layout import LLAVA
from ._projected import Projected
from ._stream import ImageState


@family("llava_next.json")
class LlavaNext(Projected):
    """encode: the whole image's tokens, then those of its tiles row by row."""

    library = "LlavaNextForConditionalGeneration"
    model_type = "llava_next"
    processor = "LlavaNextImageProcessor"
    mark = "<image>"
    keys = LLAVA
    telling = ("model.image_newline", "model.multi_modal_projector.linear_1.weight")
    vision = "model.vision_tower.encoder.layers"

    @property
    def blocks(self) -> int:
        """Vision blocks whose output, or that of a later one, is read."""
        layer, whole = self.net.config.vision_feature_layer, int(self.net.config.vision_config.num_hidden_layers)
        if not isinstance(layer, int):
            raise UserError(f"{self.card.name}: vision_feature_layer should be one layer; several are not supported.")
        unread = whole - layer if layer >= 0 else -1 - layer  # stay as they are, whatever is removed of the others
        return len(self.net.model.vision_tower.encoder.layers) - unread

    def viewed(self, pixels: Tensor, mean: Tensor, std: Tensor, facts: dict[str, Tensor]) -> View:
        """pixels: (1, tiles, 3, S, S). The file's own size says what was padded."""
        return View(pixels[0], mean, std, {"image_sizes": facts["image_sizes"]})

    def encode(self, images: Sequence[View]) -> list[ImageState]:
        model, strategy = self.net.model, self.net.config.vision_feature_select_strategy
        states = clip_vision.states_after(model.vision_tower, torch.cat([view.pixels for view in images]), self.blocks)
        tiles = model.multi_modal_projector(states[:, 1:] if strategy == "default" else states)
        packed, _ = model.pack_image_features(
            tiles.split([len(view.pixels) for view in images]),
            [view.facts["image_sizes"][0].tolist() for view in images], strategy, model.image_newline,
        )  # fmt: skip
        return [ImageState(tokens) for tokens in packed]
