"""LLaVA-OneVision (Li et al. 2024, arXiv 2408.03326) on transformers: SigLIP so400m without its last block, and Qwen2.

An image is read whole and in tiles of 384 pixels, of the listed shape that fits it best; the tiles' tokens are joined,
what was padded goes, and every row ends with a learned token (`image_newline`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vlbench.images.view import View
from vlbench.model import family

from ._layout import LLAVA
from ._projected import Projected
from ._stream import ImageState


@family("llava_onevision.json")
class LlavaOnevision(Projected):
    """encode: the whole image's tokens, then those of its tiles row by row."""

    library = "LlavaOnevisionForConditionalGeneration"
    model_type = "llava_onevision"
    processor = "LlavaOnevisionImageProcessor"
    mark = "<image>"
    keys = LLAVA
    telling = ("model.image_newline", "model.multi_modal_projector.linear_1.weight")
    vision = "model.vision_tower.encoder.layers"
    vision_readers = ("model.multi_modal_projector.linear_1",)
    text_writers = ("model.multi_modal_projector.linear_2", "model.image_newline")

    def views(self, image: Tensor) -> View:
        """The whole image and its tiles; `beside`: the square that is read where a prompt shows several images."""
        view = super().views(image)
        if not self.several:
            return view
        square = self.processed([[image, image]])["pixel_values"][0].to(torch.uint8)  # (1, 3, S, S)
        return replace(view, beside=square)

    def viewed(self, pixels: Tensor, mean: Tensor, std: Tensor, facts: dict[str, Tensor]) -> View:
        """pixels: (1, tiles, 3, S, S). The file's own size says what was padded."""
        return View(pixels[0], mean, std, {"image_sizes": facts["image_sizes"]})

    def encode(self, images: Sequence[View]) -> list[ImageState]:
        records = []
        for view in images:
            size = view.facts["image_sizes"].tolist()
            output = self.net.model.get_image_features(view.pixels, size, return_dict=True)
            records.append(ImageState(output.pooler_output[0], beside=view.beside))
        return records

    def together(self, images: Sequence[ImageState]) -> Sequence[ImageState]:
        return images if len(images) < 2 else [self._of_square(image) for image in images]

    def _of_square(self, image: ImageState) -> ImageState:
        """The tokens of one tile, and a row's end."""
        size = [list(image.beside.shape[-2:])]  # type: ignore[union-attr]
        model: Any = self.net.model
        output = model.get_image_features(image.beside, size, batch_num_images=[2], return_dict=True)
        return ImageState(output.pooler_output[0])
