"""Scenes to pixels, in integer arithmetic only, so that every platform paints the same bytes."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from .scenes import IMAGE_SIZE, REACH, Draws, Ground, Scene, Thing

UInt8Array = NDArray[np.uint8]
Int16Array = NDArray[np.int16]
Int64Array = NDArray[np.int64]

SUBSAMPLES = 4  # per axis: coverage has 16 levels
# One tilt is atan(12/35), 19 degrees: a Pythagorean triple rotates integer points exactly.
COSINE, SINE, HYPOTENUSE = 35, 12, 37
UNIT = 2 * SUBSAMPLES * HYPOTENUSE  # integer steps a pixel, after rotation

# Vertices in thousandths of the radius, y downwards.
TRIANGLE = ((0, -1150), (996, 575), (-996, 575))
STAR = (
    (0, -1150), (294, -405), (1094, -355), (476, 155), (676, 930),
    (0, 500), (-676, 930), (-476, 155), (-1094, -355), (-294, -405),
)  # fmt: skip

GRID = 8  # cells a side of the coarse ground noise
COARSE_NOISE, FINE_NOISE = 16, 5  # amplitudes in grey levels


def render(scene: Scene) -> UInt8Array:
    """The picture of a scene, shape (64, 64, 3)."""
    canvas = paint_ground(scene.ground)
    for thing in scene.objects:
        window = canvas[_window(thing)]
        coverage = _stencil(thing.shape, thing.radius, thing.tilt)[..., None]
        window += ((np.array(thing.rgb, dtype=np.int16) - window) * coverage + 8) >> 4
    return canvas.astype(np.uint8)


def object_map(scene: Scene) -> UInt8Array:
    """For each pixel, 1 + the index of the object that covers most of it, or 0 for the ground."""
    owners = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
    for number, thing in enumerate(scene.objects, start=1):
        covered = _stencil(thing.shape, thing.radius, thing.tilt) >= 8
        owners[_window(thing)][covered] = number
    return owners


def label_map(scene: Scene, ground: int, labels: Sequence[int]) -> UInt8Array:
    """For each pixel, the label of the object that covers it whole, `ground` where none does, or 0 on a rim."""
    pixels = np.full((IMAGE_SIZE, IMAGE_SIZE), ground, dtype=np.uint8)
    for thing, label in zip(scene.objects, labels, strict=True):
        coverage = _stencil(thing.shape, thing.radius, thing.tilt)
        window = pixels[_window(thing)]
        window[coverage > 0] = 0
        window[coverage == SUBSAMPLES**2] = label
    return pixels


def _window(thing: Thing) -> tuple[slice, slice]:
    half = thing.radius + REACH
    return slice(thing.y - half, thing.y + half + 1), slice(thing.x - half, thing.x + half + 1)


def paint_ground(ground: Ground) -> Int16Array:
    """A tint, smooth blotches and a fine grain, the last two alike in the three channels."""
    cells = (GRID + 1) ** 2
    noise = Draws(*ground.key).raw_bytes(cells + IMAGE_SIZE**2).astype(np.int32)
    blend = _blend()
    coarse = noise[:cells].reshape(GRID + 1, GRID + 1) - 128
    smooth = (blend @ coarse @ blend.T) * COARSE_NOISE // (128 * 4 * (IMAGE_SIZE // GRID) ** 2)
    grain = ((noise[cells:].reshape(IMAGE_SIZE, IMAGE_SIZE) - 128) * FINE_NOISE) >> 7
    grey = (smooth + grain).astype(np.int16)
    canvas: Int16Array = grey[..., None] + np.array(ground.tint, dtype=np.int16)
    return canvas


@cache
def _blend() -> NDArray[np.int32]:
    """Bilinear weights from the noise grid to pixels: (64, 9), each row summing to twice a cell's width."""
    width = IMAGE_SIZE // GRID
    weights = np.zeros((IMAGE_SIZE, GRID + 1), dtype=np.int32)
    for pixel in range(IMAGE_SIZE):
        cell, offset = divmod(pixel, width)
        weights[pixel, cell + 1] = 2 * offset + 1
        weights[pixel, cell] = 2 * width - 2 * offset - 1
    return weights


@cache  # 5 shapes x 4 radii x 3 tilts
def _stencil(shape: str, radius: int, tilt: int) -> Int16Array:
    """Coverage of each pixel around the centre, 0 to 16."""
    half = radius + REACH
    ticks = np.arange((2 * half + 1) * SUBSAMPLES, dtype=np.int64) * 2
    ticks -= (2 * half + 1) * SUBSAMPLES - 1  # symmetric about the centre of the middle pixel
    y, x = ticks[:, None], ticks[None, :]
    cosine, sine = (COSINE, tilt * SINE) if tilt else (HYPOTENUSE, 0)
    inside = _inside(shape, x * cosine + y * sine, y * cosine - x * sine, radius * UNIT)
    blocks = inside.reshape(2 * half + 1, SUBSAMPLES, 2 * half + 1, SUBSAMPLES)
    coverage: Int16Array = blocks.sum(axis=(1, 3), dtype=np.int16)
    return coverage


def _inside(shape: str, x: Int64Array, y: Int64Array, radius: int) -> NDArray[np.bool_]:
    if shape == "circle":
        return x * x + y * y <= radius * radius
    if shape == "square":
        return np.maximum(abs(x), abs(y)) * 100 <= radius * 86
    if shape == "cross":
        longer, shorter = np.maximum(abs(x), abs(y)), np.minimum(abs(x), abs(y))
        return (longer <= radius) & (shorter * 100 <= radius * 34)
    return _in_polygon({"triangle": TRIANGLE, "star": STAR}[shape], x * 1000, y * 1000, radius)


def _in_polygon(vertices: tuple[tuple[int, int], ...], x: Int64Array, y: Int64Array, scale: int) -> NDArray[np.bool_]:
    """Even-odd rule, with the division of the textbook form multiplied out."""
    inside = np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=np.bool_)
    for (ax, ay), (bx, by) in zip(vertices, (*vertices[1:], vertices[0]), strict=True):
        straddles = (ay * scale > y) != (by * scale > y)
        side = (x - ax * scale) * (by - ay) - (y - ay * scale) * (bx - ax)
        inside ^= straddles & ((side < 0) if by > ay else (side > 0))
    return inside
