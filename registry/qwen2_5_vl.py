"""Qwen2.5-VL (Bai et al. 2025, arXiv 2502.13923) on transformers: a ViT of native resolution with windows, and Qwen2.5.

An image keeps its aspect ratio: its sides become multiples of 28 pixels, and every 28 x 28 pixels one token, whose
place in the language model's rotary positions is that on the image's grid (M-RoPE). The tower reads one image at a
time, so that calibration counts an image as one sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from transformers.vision_utils import get_vision_position_ids

from vlbench.images.view import View
from vlbench.model import family

from ._projected import Projected
from ._stream import ImageState


@family("qwen2_5_vl.json")
class Qwen25VL(Projected):
    """encode: each image's patches -> (height / 28) x (width / 28) tokens with their places."""

    library = "Qwen2_5_VLForConditionalGeneration"
    model_type = "qwen2_5_vl"
    processor = "Qwen2VLImageProcessor"
    mark = "<|image_pad|>"
    keys: ClassVar[Sequence[tuple[str, str]]] = (
        (r"^visual\.", "model.visual."),
        (r"^model\.(?!language_model\.|visual\.)", "model.language_model."),
    )
    telling = ("model.visual.patch_embed.proj.weight", "model.visual.merger.ln_q.weight")
    vision = "model.visual.blocks"
    vision_readers: ClassVar[Sequence[str] | None] = ()  # its merger is the tower's own
    text_writers: ClassVar[Sequence[str] | None] = ("model.visual.merger.mlp.2",)

    def viewed(self, pixels: Tensor, mean: Tensor, std: Tensor, facts: dict[str, Tensor]) -> View:
        """pixels: (patches, 3 x frames x side x side), a row a patch."""
        mean, std = (x.flatten().repeat_interleave(pixels.shape[1] // 3) for x in (mean, std))
        return View(pixels, mean, std, facts)

    def encode(self, images: Sequence[View]) -> list[ImageState]:
        records = []
        for view in images:
            grid: Tensor = view.facts["image_grid_thw"]
            device, merge = view.pixels.device, int(self.net.config.vision_config.spatial_merge_size)
            # What follows from the grid is made where the grid is, on the CPU; the tower's device never waits for it.
            places_of_patches = get_vision_position_ids(grid, merge).to(device)
            output = self.net.model.get_image_features(
                view.pixels, grid, position_ids=places_of_patches, return_dict=True
            )
            height, width = (int(n) // merge for n in grid[0, 1:].tolist())
            records.append(ImageState(output.pooler_output[0], places(height, width, device), max(height, width)))
        return records


def places(height: int, width: int, device: torch.device) -> Tensor:
    """(3, height x width): time, row and column of the tokens of one image, from its first one on."""
    number = torch.arange(height * width, device=device)
    return torch.stack([torch.zeros_like(number), number // width, number % width])
