"""Class maps of images of any size by a sliding window (inference of Segmenter, arXiv 2105.05633).

Windows of several images go through the model together. Its coarse logits are kept until they are spread over the
pixels of their window, one window after another, and summed: of full-size logits (0.2 GB for a street and 150 classes)
no more than an image's are held at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError

Size = tuple[int, int]  # height, width
NOT_FINITE = 255  # no class
NUMBERS = 1 << 27  # logits that are resized at once, 0.5 GB


class Windowed(Protocol):
    """What a model needs to be slid over an image."""

    def masks(self, images: Tensor) -> Tensor:
        """(n, 3, w, w) windows -> logits (n, classes, ...), as coarse as the model makes them."""

    def spread(self, masks: Tensor, size: Size) -> Tensor:
        """Such logits -> (n, classes, w, w)."""


@dataclass(frozen=True)
class Sliding:
    """How a model goes over an image. window, stride: pixels. scales: sizes of the image that are averaged over; flip:
    and the mirrored image at each. at_once: windows in one pass."""

    window: int
    stride: int
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    at_once: int = 16

    def __post_init__(self) -> None:
        if self.stride > self.window:
            raise UserError(f"stride={self.stride} leaves gaps between windows of {self.window}: lower it.")

    @property
    def mirrored(self) -> tuple[bool, ...]:
        """Of each view of an image, in their order."""
        return ((False, True) if self.flip else (False,)) * len(self.scales)


@torch.no_grad()
def class_maps(model: Windowed, images: Sequence[Tensor], sizes: Sequence[Size], how: Sliding) -> Iterator[Tensor]:
    """The class of every pixel, uint8 (H, W) at `sizes` (those of the files), of each image (3, h, w) in turn."""
    logits = sliding_logits(model, (view for image in images for view in views(image, how)), how)
    for size in sizes:
        if len(how.mirrored) == 1:  # a softmax changes no order
            yield best(next(logits), size)
        else:
            yield best(averaged(islice(logits, len(how.mirrored)), how.mirrored, size), size)


def views(image: Tensor, how: Sliding) -> Iterator[Tensor]:
    """An image at each scale, plain and (with flip) mirrored. Made smaller without antialiasing, as cv2 does it for the
    originals."""
    for scale in how.scales:
        size = [int(side * scale + 0.5) for side in image.shape[1:]]
        scaled = image if scale == 1 else F.interpolate(image[None], size=size, mode="bilinear")[0]
        yield scaled
        if how.flip:
            yield scaled.flip(2)


def averaged(logits: Iterable[Tensor], mirrored: Sequence[bool], size: Size) -> Tensor:
    """(classes, H, W) mean probabilities of an image's views: each is resized, mirrored back and then softmaxed."""
    total: Tensor | None = None
    for one, back in zip(logits, mirrored, strict=True):
        view = resized(one, size)
        view = (view.flip(2) if back else view).softmax(0)
        total = view if total is None else total.add_(view)
    assert total is not None
    return total.div_(len(mirrored))


def best(logits: Tensor, size: Size) -> Tensor:
    """(H, W) uint8 class of the highest of the resized logits, a few classes at a time; NOT_FINITE where that is not
    finite, which the host sees when it has the map."""
    step = max(1, NUMBERS // (size[0] * size[1]))
    value, index = resized(logits[:step], size).max(0)
    for start in range(step, len(logits), step):
        other, where = resized(logits[start : start + step], size).max(0)
        higher = (other > value) | other.isnan()
        value, index = torch.where(higher, other, value), torch.where(higher, where + start, index)
    return index.masked_fill(~value.isfinite(), NOT_FINITE).to(torch.uint8)


def resized(logits: Tensor, size: Size) -> Tensor:
    """(classes, h, w) -> (classes, *size), bilinear."""
    if tuple(logits.shape[1:]) == tuple(size):
        return logits
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]


@dataclass(frozen=True)
class _Window:
    """One window of an image of `size`: where it lies, and whether it is the image's first or last."""

    pixels: Tensor
    size: Size
    top: int
    left: int
    first: bool
    last: bool


def sliding_logits(model: Windowed, images: Iterable[Tensor], how: Sliding) -> Iterator[Tensor]:
    """(classes, H, W) logits of each image (3, h, w), averaged over its windows; H, W are those of `at_least`."""
    windows = (window for image in images for window in _windows(image, how))
    side = (how.window, how.window)
    while chunk := list(islice(windows, how.at_once)):
        masks = model.masks(torch.stack([w.pixels for w in chunk]))
        for window, mask in zip(chunk, masks, strict=True):
            logits = model.spread(mask[None], side)[0]
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            if window.first and window.last:
                yield logits
                continue
            if window.first:
                total = logits.new_zeros((len(logits), *window.size))
                count = logits.new_zeros(window.size)
            rows, columns = slice(window.top, window.top + side[0]), slice(window.left, window.left + side[1])
            total[:, rows, columns] += logits
            count[rows, columns] += 1
            if window.last:
                yield total.div_(count)


def _windows(image: Tensor, how: Sliding) -> Iterator[_Window]:
    image = at_least(image, how.window)
    size = (image.shape[1], image.shape[2])
    places = anchors(size, how.window, how.stride)
    for number, (top, left) in enumerate(places):
        pixels = image[:, top : top + how.window, left : left + how.window]
        yield _Window(pixels, size, top, left, number == 0, number == len(places) - 1)


def anchors(size: Size, window: int, stride: int) -> list[tuple[int, int]]:
    """Top left corners of the windows, row by row: a stride apart, the last ones against the border."""
    down, across = ([*range(0, side - window, stride), side - window] for side in size)
    return [(top, left) for top in down for left in across]


def at_least(image: Tensor, window: int) -> Tensor:
    """An image one of whose sides is shorter than the window, enlarged until its shorter side is the window."""
    height, width = image.shape[1:]
    if min(height, width) >= window:
        return image
    longer = int(max(height, width) / min(height, width) * window)
    size = [window, longer] if height < width else [longer, window]
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
