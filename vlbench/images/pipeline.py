"""Image pipeline: files -> uint8 tensors at the model's size; normalisation happens where the model runs."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..machine.device import pinned
from .files import Undecodable, refuse_special
from .kept import KeptPixels, content_key
from .spec import ImageSpec
from .view import View


class ImageStore:
    """Decodes with threads (decoding and resizing release the GIL) and keeps what fits `keep_bytes` in memory.

    Threads instead of processes: nothing is pickled, nothing outlives the run, and on two cores a process start
    costs more than the whole mini split.
    """

    def __init__(
        self,
        spec: ImageSpec,
        views: Callable[[Tensor], View | None] = lambda image: None,
        *,
        workers: int | None = None,
        keep_bytes: int = 512 << 20,
        change: Callable[[Tensor], Tensor] | None = None,
        kept: KeptPixels | None = None,
    ) -> None:
        """views: the model's own preprocessing of one (3, H, W) uint8 image; None: `spec` says all there is to do.
        change: what is done to an image before that. kept: images on disk that need not be decoded again."""
        self.spec, self.views, self.change, self.kept = spec, views, change, kept
        self.pool = ThreadPoolExecutor(workers or min(32, os.cpu_count() or 1), thread_name_prefix="decode")
        # First come, first kept: an epoch longer than the room would push every image out of a least-recently-used
        # cache just before its turn.
        self._kept: dict[Path, Tensor | View] = {}
        self._room = keep_bytes
        # File -> its own (height, width), of every image decoded so far.
        self.sizes: dict[Path, tuple[int, int]] = {}

    def changed(self, change: Callable[[Tensor], Tensor]) -> ImageStore:
        """A store of its own whose images are changed before the model's preprocessing, (3, H, W) uint8 each."""
        return ImageStore(self.spec, self.views, change=change)

    def load(self, paths: Sequence[Path]) -> list[Any]:
        """Each image, (3, H, W) uint8 or the model's View. Raises Undecodable naming the file."""
        return list(self.pool.map(self._one, paths))

    def try_load(self, paths: Sequence[Path]) -> list[Any | OSError]:
        """Each image, or why it does not decode."""

        def attempt(path: Path) -> Tensor | View | OSError:
            try:
                return self._one(path)
            except OSError as error:
                return error

        return list(self.pool.map(attempt, paths))

    def _one(self, path: Path) -> Tensor | View:
        pixels = self._kept.get(path)
        if pixels is None:
            pixels, self.sizes[path] = self._prepared(path) if self.kept is None else self._from_disk(path, self.kept)
            if pixels.nbytes <= self._room:
                self._room -= pixels.nbytes
                self._kept[path] = pixels
        return pixels

    def _from_disk(self, path: Path, kept: KeptPixels) -> tuple[Tensor | View, tuple[int, int]]:
        """What is kept of the file's content, or else that content decoded."""
        refuse_special(path)
        try:
            content = path.read_bytes()
        except OSError:
            return self._prepared(path)  # which tells why
        key = content_key(content)
        if (decoded := kept.read(key)) is not None:
            return decoded
        try:
            pixels, size = self._prepared(path, content)
        except Undecodable:
            return self._prepared(path)  # Pillow's words for bytes name no file
        if isinstance(pixels, Tensor):
            kept.write(key, pixels, size)
        return pixels, size

    def _prepared(self, path: Path, content: bytes | None = None) -> tuple[Tensor | View, tuple[int, int]]:
        """The image as the model takes it, and its own (height, width)."""
        image = decode(path, content)
        if self.change is not None:
            image = self.change(image)
        try:
            view = self.views(image)
            pixels = preprocess(image, self.spec) if view is None else view
        except (RuntimeError, ValueError) as error:
            raise Undecodable(f"{path} of shape {tuple(image.shape)} cannot be resized: {_short(error)}") from None
        return pixels, (image.shape[1], image.shape[2])


def decode(path: Path, content: bytes | None = None) -> Tensor:
    """(3, H, W) uint8 RGB, an animation's first frame. content: the file's, where it was read already. Raises
    Undecodable with the file's name.

    Pillow: torchvision deprecates its decoders since 0.29, their pixels are the same, and both let other threads run.
    """
    refuse_special(path)
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            pixels = np.asarray(_eight_bit(image).convert("RGB"))
    except FileNotFoundError:
        raise Undecodable(f"{path} does not exist") from None
    except Exception as error:  # Pillow's readers raise what they come across: struct.error, DecompressionBombError
        raise Undecodable(f"{path} does not decode: {_short(error)}") from None
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()


def _eight_bit(image: Image.Image) -> Image.Image:
    """A 16-bit grey picture scaled down; Pillow's convert() would clip it to white. Raises ValueError for 32 bits
    or floating-point values, which clipping makes black or white: the file does not say what is white."""
    if image.mode in ("I", "F"):
        raise ValueError("grey values of 32 bits have no scale; store it with 8 or 16 bits")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image


def _short(error: Exception) -> str:
    return (str(error).strip() or "unknown format").splitlines()[0][:200]


def preprocess(image: Tensor, spec: ImageSpec) -> Tensor:
    """Resize (and crop) a uint8 image as the checkpoint expects; within one grey level of Pillow's result."""
    target = [spec.size, spec.size]
    if spec.resize == "squash" and spec.crop_pct == 1 and list(image.shape[1:]) == target:
        return image
    if spec.resize == "pad":
        image = padded_square(image, spec)
    # Imported late: torchvision takes as long as torch itself, and a finished cell only reads its record.
    from torchvision.transforms.v2 import functional as tv

    mode = tv.InterpolationMode(spec.interpolation)
    if spec.resize in ("pad", "keep") or (spec.resize == "squash" and spec.crop_pct == 1):
        if spec.resize == "keep":
            target = kept_size(image.shape[1], image.shape[2], spec.size)
        resized: Tensor = image if list(image.shape[1:]) == target else tv.resize(image, target, mode, antialias=True)
        return resized
    shorter = math.floor(spec.size / spec.crop_pct)
    before = [shorter, shorter] if spec.resize == "squash" else [shorter]
    cropped: Tensor = tv.center_crop(tv.resize(image, before, mode, antialias=True), [spec.size, spec.size])
    return cropped.contiguous()  # a view would keep the whole resized image in the store's memory


def padded_square(image: Tensor, spec: ImageSpec) -> Tensor:
    """(3, H, W) uint8 in the middle of a square of the mean colour, as LLaVA-1.5's expand2square: the colour is
    int(255 * mean), the smaller half of an odd border goes before the image."""
    _, height, width = image.shape
    side = max(height, width)
    if height == width:
        return image
    colour = torch.tensor([int(255 * channel) for channel in spec.mean], dtype=torch.uint8)
    square = colour.view(3, 1, 1).repeat(1, side, side)
    top, left = (side - height) // 2, (side - width) // 2
    square[:, top : top + height, left : left + width] = image
    return square


def kept_size(height: int, width: int, size: int) -> list[int]:
    """[height, width] with the shorter side `size` and the longer one at most 4 x size, as mmsegmentation rescales to
    (4 x size, size): sides are rounded to the nearest pixel, halves up."""
    scale = min(size / min(height, width), 4 * size / max(height, width))
    return [max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))]


def on_device(images: Sequence[Any] | Tensor, spec: ImageSpec, device: torch.device, dtype: torch.dtype) -> Any:
    """Batch.images: uint8 images -> one normalised tensor (I, 3, H, W), or a list where they keep their shapes; of
    views, a list of normalised ones."""
    if not isinstance(images, Tensor) and images and isinstance(images[0], View):
        return [view.on(device, dtype) for view in images]
    if spec.resize == "keep":
        return [normalise(pinned(image, device).to(device, non_blocking=True), spec, dtype) for image in images]
    pixels = images if isinstance(images, Tensor) else pinned(torch.stack(list(images)), device)
    return normalise(pixels.to(device, non_blocking=True), spec, dtype)


def normalise(images: Tensor, spec: ImageSpec, dtype: torch.dtype = torch.float32) -> Tensor:
    """(..., 3, H, W) uint8 -> normalised floating tensor on the same device."""
    mean = torch.tensor(spec.mean, device=images.device, dtype=torch.float32).view(3, 1, 1)
    std = torch.tensor(spec.std, device=images.device, dtype=torch.float32).view(3, 1, 1)
    return images.to(torch.float32).div_(255).sub_(mean).div_(std).to(dtype)
