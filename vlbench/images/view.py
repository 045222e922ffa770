"""What a vision tower is given of one image, where that is more than one square: tiles, or a native grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class View:
    """One image as its model's own processor makes it.

    pixels: uint8 (tiles, 3, H, W), or whatever shape the tower reads; after `on` normalised and floating. mean, std:
    float32, of values in [0, 1], in a shape that broadcasts against `pixels`. facts: what else the tower asks of an
    image (its grid of patches, the size of the file), always on the CPU. beside: what is read of the image, in place of
    `pixels`, in a prompt that shows several; None: the same.
    """

    pixels: Tensor
    mean: Tensor
    std: Tensor
    facts: Mapping[str, Tensor] = field(default_factory=dict)
    beside: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    @property
    def nbytes(self) -> int:
        """Bytes that the pixels take."""
        return self.pixels.nbytes + (0 if self.beside is None else self.beside.nbytes)

    def on(self, device: torch.device, dtype: torch.dtype) -> View:
        """Normalised there. The raw pixels travel: a quarter of the bytes."""
        beside = None if self.beside is None else self._normalised(self.beside, device).to(dtype)
        return replace(self, pixels=self._normalised(self.pixels, device).to(dtype), beside=beside)

    def _normalised(self, pixels: Tensor, device: torch.device) -> Tensor:
        moved = pixels.to(device, non_blocking=True).to(torch.float32).div_(255)
        return moved.sub_(self.mean.to(device)).div_(self.std.to(device))

    def blank(self) -> View:
        """Of the mean colour, which is 0 when it is normalised."""
        beside = None if self.beside is None else torch.zeros_like(self.beside)
        return replace(self, pixels=torch.zeros_like(self.pixels), beside=beside)
