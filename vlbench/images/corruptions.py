"""Corruptions of images at severities 1 to 5, with the constants of ImageNet-C (Hendrycks and Dietterich, "Benchmarking
Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019, arXiv 1903.12261).

The constants are those of its generator for images of 224 x 224. Here the file is corrupted at its own size, before
the model's preprocessing, so that every model sees one and the same image: a blur of a given width weighs less on a
larger file. Left out: motion blur and snow, which are ImageMagick's blur along a line; frost, which lays photographs
over the image; glass blur and elastic transforms; spatter and saturate, which its generator has beyond its 15.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Pixels = NDArray[np.float64]  # (H, W, 3) in [0, 1]
Corruption = Callable[[Pixels, int, np.random.Generator], Pixels]
SEVERITIES = 5


def gaussian_noise(pixels: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """x + N(0, c)."""
    return pixels + (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1] * random.standard_normal(pixels.shape)


def shot_noise(pixels: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """Poisson(c x) / c: c photons where a pixel is white."""
    photons = (60, 25, 12, 5, 3)[severity - 1]
    noisy: Pixels = random.poisson(pixels * photons) / photons
    return noisy


def impulse_noise(pixels: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """A fraction c of all values is 0 or 1, each with one half."""
    fraction = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    hit, white = random.random(pixels.shape) < fraction, random.random(pixels.shape) < 0.5
    return np.where(hit, white.astype(np.float64), pixels)


def speckle_noise(pixels: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """x + x N(0, c)."""
    scale = (0.15, 0.2, 0.35, 0.45, 0.6)[severity - 1]
    return pixels + pixels * scale * random.standard_normal(pixels.shape)


def gaussian_blur(pixels: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """A Gaussian of c pixels, cut at four of them; the border is continued by its last pixel."""
    from scipy.ndimage import gaussian_filter

    width = (1, 2, 3, 4, 6)[severity - 1]
    blurred: Pixels = gaussian_filter(pixels, (width, width, 0), mode="nearest", truncate=4.0)
    return blurred


def defocus_blur(pixels: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """The mean over a disk of c pixels' radius, whose edge a small Gaussian has softened; borders are mirrored. From
    radius 8 on the disk touches its own border, so that its weights add up to a little more than 1, as there."""
    from scipy.ndimage import convolve, correlate1d

    radius, softness = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    places = np.arange(-max(radius, 8), max(radius, 8) + 1)
    inside = places**2 + places[:, None] ** 2 <= radius**2
    disk = inside / inside.sum()
    reach = 1 if radius <= 8 else 2  # of the Gaussian: 3 or 5 values
    weights = np.exp(-np.square(np.arange(-reach, reach + 1)) / (2 * softness**2))
    for axis in (0, 1):
        disk = correlate1d(disk, weights / weights.sum(), axis=axis, mode="mirror")
    blurred: Pixels = convolve(pixels, disk[..., None], mode="mirror")
    return blurred


def zoom_blur(pixels: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """The mean of the image and of its middle, enlarged by factors from 1 to c."""
    from scipy.ndimage import zoom

    end, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[severity - 1]
    factors, (height, width) = np.arange(1, end, step), pixels.shape[:2]
    total = pixels.copy()
    for factor in factors:
        rows, columns = math.ceil(height / factor), math.ceil(width / factor)
        top, left = (height - rows) // 2, (width - columns) // 2
        large = zoom(pixels[top : top + rows, left : left + columns], (factor, factor, 1), order=1)
        top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
        total += large[top : top + height, left : left + width]
    return total / (len(factors) + 1)


def fog(pixels: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """A cloud of c times the range is added, and the sum is scaled back to the brightest value of the image."""
    amount, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[severity - 1]
    height, width = pixels.shape[:2]
    side = max(256, 1 << (max(height, width) - 1).bit_length())  # 256 is the generator's, for 224 pixels
    brightest = pixels.max()
    hidden: Pixels = (pixels + amount * cloud(side, decay, random)[:height, :width, None]) * (
        brightest / (brightest + amount)
    )
    return hidden


def cloud(side: int, decay: float, random: np.random.Generator) -> Pixels:
    """(side, side) in [0, 1], by the diamond-square rule on a torus: the middle of four known places is their mean and
    a random number, whose range falls by `decay` each time that the grid becomes twice as fine. side: a power of two.
    """
    heights, step, spread = np.zeros((side, side)), side, 100.0

    def middle(four: Pixels) -> Pixels:
        return four / 4 + spread * random.uniform(-spread, spread, four.shape)

    while step > 1:
        half = step // 2
        corners = heights[::step, ::step]
        rows = corners + np.roll(corners, -1, 0)
        heights[half::step, half::step] = middle(rows + np.roll(rows, -1, 1))
        centres = heights[half::step, half::step]
        beside = centres + np.roll(centres, 1, 0) + corners + np.roll(corners, -1, 1)
        heights[::step, half::step] = middle(beside)
        above = centres + np.roll(centres, 1, 1) + corners + np.roll(corners, -1, 0)
        heights[half::step, ::step] = middle(above)
        step, spread = half, spread / decay
    heights -= heights.min()
    scaled: Pixels = heights / heights.max()
    return scaled


def brightness(pixels: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """V + c in hue, saturation, value. V is the largest channel, so that the other two scale with it; black has no
    saturation and becomes grey."""
    value = pixels.max(axis=2, keepdims=True)  # (H, W, 1)
    brighter = np.minimum(value + (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1], 1)
    scaled: Pixels = np.where(value > 0, pixels * (brighter / np.where(value > 0, value, 1)), brighter)
    return scaled


def contrast(pixels: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """c (x - mean) + mean, with the mean of each channel."""
    mean = pixels.mean(axis=(0, 1), keepdims=True)  # (1, 1, 3)
    flatter: Pixels = (pixels - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1] + mean
    return flatter


def pixelate(pixels: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """Reduced to a fraction c of its sides and enlarged again, by boxes."""
    fraction = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    image = _as_image(pixels)
    small = (max(1, int(image.width * fraction)), max(1, int(image.height * fraction)))
    return _as_pixels(image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX))


def jpeg(pixels: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """Written as a JPEG of quality c, and read."""
    file = io.BytesIO()
    _as_image(pixels).save(file, "JPEG", quality=(25, 18, 15, 10, 7)[severity - 1])
    with Image.open(file) as image:
        return _as_pixels(image)


CORRUPTIONS: dict[str, Corruption] = {
    "brightness": brightness,
    "contrast": contrast,
    "defocus_blur": defocus_blur,
    "fog": fog,
    "gaussian_blur": gaussian_blur,
    "gaussian_noise": gaussian_noise,
    "impulse_noise": impulse_noise,
    "jpeg": jpeg,
    "pixelate": pixelate,
    "shot_noise": shot_noise,
    "speckle_noise": speckle_noise,
    "zoom_blur": zoom_blur,
}


def corrupted(image: Tensor, name: str, severity: int, random: np.random.Generator) -> Tensor:
    """(3, H, W) uint8 -> the same shape. Values are clipped to [0, 255] and rounded down, as the benchmark's files."""
    pixels = image.permute(1, 2, 0).numpy() / 255.0  # (H, W, 3)
    changed = np.clip(CORRUPTIONS[name](pixels, severity, random), 0, 1) * 255
    return torch.from_numpy(changed.astype(np.uint8)).permute(2, 0, 1).contiguous()


def _as_image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(np.rint(pixels * 255).astype(np.uint8))


def _as_pixels(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB"), dtype=np.float64) / 255.0
