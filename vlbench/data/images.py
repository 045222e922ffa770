"""Image pipeline: files -> uint8 tensors at the model's size; normalisation happens where the model runs."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as tv

from ..model import ImageSpec


class ImageStore:
    """Decodes with threads (decoding and resizing release the GIL) and keeps what fits `keep_bytes` in memory.

    Threads instead of processes: nothing is pickled, nothing outlives the run, and on two cores a process start
    costs more than the whole mini split.
    """

    def __init__(self, spec: ImageSpec, *, workers: int | None = None, keep_bytes: int = 512 << 20) -> None:
        self.spec = spec
        self.pool = ThreadPoolExecutor(workers or min(32, os.cpu_count() or 1), thread_name_prefix="decode")
        self._kept: OrderedDict[Path, Tensor] = OrderedDict()
        self._room = keep_bytes // (3 * spec.size * spec.size)

    def load(self, paths: Sequence[Path]) -> Tensor:
        """(n, 3, size, size) uint8. Raises OSError naming the file that does not decode."""
        return torch.stack(list(self.pool.map(self._one, paths)))

    def try_load(self, paths: Sequence[Path]) -> list[Tensor | OSError]:
        """Each image, or why it does not decode."""

        def attempt(path: Path) -> Tensor | OSError:
            try:
                return self._one(path)
            except OSError as error:
                return error

        return list(self.pool.map(attempt, paths))

    def _one(self, path: Path) -> Tensor:
        found = self._kept.get(path)
        if found is None:
            found = preprocess(decode(path), self.spec)
            if len(self._kept) < self._room:
                self._kept[path] = found
        return found


def decode(path: Path) -> Tensor:
    """(3, H, W) uint8 RGB. Raises OSError with the file's name."""
    try:
        return decode_image(str(path), mode=ImageReadMode.RGB)
    except RuntimeError as error:
        return _decode_with_pillow(path, error)


def _decode_with_pillow(path: Path, error: RuntimeError) -> Tensor:
    """CMYK and other rarities (22 files of ImageNet) that torchvision refuses."""
    try:
        with Image.open(path) as image:
            return tv.pil_to_tensor(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError):
        raise OSError(
            f"{path} does not decode: {str(error).splitlines()[0] if str(error) else 'unknown format'}"
        ) from None


def preprocess(image: Tensor, spec: ImageSpec) -> Tensor:
    """Resize (and crop) a uint8 image as the checkpoint expects; within one grey level of Pillow's result."""
    mode = tv.InterpolationMode(spec.interpolation)
    if spec.resize == "squash":
        target = [spec.size, spec.size]
        return image if list(image.shape[1:]) == target else tv.resize(image, target, mode, antialias=True)
    shorter = math.floor(spec.size / spec.crop_pct)
    return tv.center_crop(tv.resize(image, [shorter], mode, antialias=True), [spec.size, spec.size])


def normalise(images: Tensor, spec: ImageSpec, dtype: torch.dtype = torch.float32) -> Tensor:
    """(I, 3, H, W) uint8 -> normalised floating tensor on the same device."""
    mean = torch.tensor(spec.mean, device=images.device, dtype=torch.float32).view(3, 1, 1)
    std = torch.tensor(spec.std, device=images.device, dtype=torch.float32).view(3, 1, 1)
    return images.to(torch.float32).div_(255).sub_(mean).div_(std).to(dtype)
