"""Qwen3-VL (2025, arXiv 2511.21631) on transformers: Qwen2.5-VL's native resolution, and DeepStack.

States of three blocks of the ViT become tokens of their own, which the language model adds to an image's tokens after
its first three blocks. Calibration keeps what is added and adds it in replay (calibration/capture.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from vlbench.images.view import View
from vlbench.model import family

from ._stream import ImageState
from .qwen2_5_vl import Qwen25VL, places


@family("qwen3_vl.json")
class Qwen3VL(Qwen25VL):
    """encode: each image's tokens, their places, and what is added to them inside the language model."""

    library = "Qwen3VLForConditionalGeneration"
    model_type = "qwen3_vl"
    keys: ClassVar[Sequence[tuple[str, str]]] = ()
    # What DeepStack takes out of the vision tower goes through norms over several tokens, and into the language model's
    # blocks.
    vision_readers = None
    text_writers = None
    telling = ("model.visual.patch_embed.proj.weight", "model.visual.deepstack_merger_list.0.linear_fc1.weight")

    def encode(self, images: Sequence[View]) -> list[ImageState]:
        records, tower = [], self.net.model.visual
        for view in images:
            grid: Tensor = view.facts["image_grid_thw"]
            device, merge = view.pixels.device, int(self.net.config.vision_config.spatial_merge_size)
            # What follows from the grid is made where the grid is, on the CPU; the tower's device never waits for it.
            taps, weights = get_vision_interpolation_indices_and_weights(
                grid, num_grid_per_side=tower.num_grid_per_side, mode=tower.interpolation_mode,
                align_corners=tower.interpolation_align_corners, spatial_merge_size=merge,
            )  # fmt: skip
            output = self.net.model.get_image_features(
                view.pixels, grid, position_ids=get_vision_position_ids(grid, merge).to(device),
                interp_indices=taps.to(device), interp_weights=weights.to(device), return_dict=True,
            )  # fmt: skip
            height, width = (int(n) // merge for n in grid[0, 1:].tolist())
            layers = tuple(level[0] for level in output.deepstack_features)
            where = places(height, width, device)
            records.append(ImageState(output.pooler_output[0], where, max(height, width), layers))
        return records
