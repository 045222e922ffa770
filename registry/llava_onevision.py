"""LLaVA-OneVision (Li et al. 2024, arXiv 2408.03326) on transformers: SigLIP so400m without its last block, and Qwen2.

An image is read whole and in tiles of 384 pixels, of the listed shape that fits it best; the tiles' tokens are joined,
what was padded goes, and every row ends with a learned token (`image_newline`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

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
    several: ClassVar[bool] = False  # images of one sample are read another way, by one tile each

    def viewed(self, pixels: Tensor, mean: Tensor, std: Tensor, facts: dict[str, Tensor]) -> View:
        """pixels: (1, tiles, 3, S, S). The file's own size says what was padded."""
        return View(pixels[0], mean, std, {"image_sizes": facts["image_sizes"]})

    def encode(self, images: Sequence[View]) -> list[ImageState]:
        records = []
        for view in images:
            size = view.facts["image_sizes"].tolist()
            output = self.net.model.get_image_features(view.pixels, size, return_dict=True)
            records.append(ImageState(output.pooler_output[0]))
        return records
