"""How a checkpoint wants its images: data that a card writes and a folder may overrule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ImageSpec:
    """Preprocessing of a checkpoint. resize: "squash" to size x size; "crop": shorter side to size / crop_pct, then
    the centre; "keep": shorter side to size, longer side at most 4 x size, aspect ratio kept (segmentation: images then
    differ in size). mean and std are of values in [0, 1]. stride: where a segmenter slides a window of size x size, its
    step; 0: the window."""

    size: int
    resize: Literal["squash", "crop", "keep"] = "squash"
    crop_pct: float = 1.0
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    stride: int = 0
