"""How a checkpoint wants its images: data that a card writes and a folder may overrule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ImageSpec:
    """Preprocessing of a checkpoint. mean and std are of values in [0, 1].

    resize: "squash" to size / crop_pct a side, then the centre; "crop": shorter side to size / crop_pct, then the
    centre; "pad": to a square of the mean colour, then to size x size (LLaVA-1.5); "keep": shorter side to size, longer
    side at most 4 x size, aspect ratio kept (segmentation: images then differ in size); "views": the
    family makes what its tower takes (Model.views), by the words of the folder. stride: where a segmenter slides a
    window of size x size, its step; 0: the window."""

    size: int
    resize: Literal["squash", "crop", "pad", "keep", "views"] = "squash"
    crop_pct: float = 1.0
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    stride: int = 0
