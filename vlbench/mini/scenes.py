"""Scenes of the mini world: a few coloured shapes on a textured ground.

A scene is a pure function of (stream, split, index), so scene 4,711 is the same whether or not its
neighbours were ever made. Randomness comes from the raw 64-bit output of PCG64: numpy promises that
bit generators keep their streams for ever, but not that `Generator.integers` does (NEP 19).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

IMAGE_SIZE = 64
SHAPES = ("circle", "square", "triangle", "star", "cross")
SIZES = ("small", "large")
# Near the corners of the RGB cube, the most separated eight colours there are; the ground stays mid-grey.
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (40, 158, 60),
    "blue": (40, 80, 214),
    "yellow": (236, 214, 48),
    "cyan": (56, 206, 214),
    "purple": (156, 48, 180),
    "white": (238, 238, 238),
    "black": (22, 22, 22),
}
COLORS = tuple(PALETTE)

WORLD_SEED = 20240527
RADII = {"small": (6, 7), "large": (10, 11)}  # pixels; a gap of three keeps the two sizes apart
COLOR_JITTER = 12  # per channel, so that a colour is a region and not one value
# Centres stand in the middle of the patches of a ViT/8. Anywhere else, a tiny ViT needs a million pictures to tell a
# small star from a small cross: 200 steps of batch 128 gave 29 % of 40 classes, 59 % on the lattice.
LATTICE = 8
REACH = 2  # a shape's corners stand at most this far outside its nominal radius
# First parts of the keys of draws. A world's scenes are a stream of their own, whose number the world says (4 and up,
# without 8 and 9): a stranger's may be any large one. Worlds of one stream would show the same pictures.
SCENE, GROUND, SALIENT, QUESTION, CAPTION, STATEMENT = 0, 1, 2, 3, 8, 9
SPLITS = {"train": 0, "val": 1, "test": 2}

T = TypeVar("T")


class Draws:
    """Random choices from one keyed PCG64 stream."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence((WORLD_SEED, *key)))
        self._pending: list[int] = []

    def below(self, bound: int) -> int:
        """A uniform integer in [0, bound); its bias is below 2**-26 for the bounds used here."""
        if not self._pending:
            self._pending = (self._bits.random_raw(64) >> np.uint64(32)).tolist()
        return (self._pending.pop() * bound) >> 32

    def between(self, low: int, high: int) -> int:
        """A uniform integer in [low, high]."""
        return low + self.below(high - low + 1)

    def chance(self, percent: int) -> bool:
        return self.below(100) < percent

    def pick(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def weighted(self, items: Sequence[T], weights: Sequence[int]) -> T:
        """One item, with probability proportional to its integer weight."""
        ticket = self.below(sum(weights))
        for item, weight in zip(items, weights, strict=True):
            ticket -= weight
            if ticket < 0:
                return item
        raise AssertionError("unreachable: the ticket is below the sum of the weights")

    def raw_bytes(self, count: int) -> NDArray[np.uint8]:
        words = np.asarray(self._bits.random_raw((count + 7) // 8), dtype="<u8")
        return words.view(np.uint8)[:count]


@dataclass(frozen=True, slots=True)
class Thing:
    """One object. `x`, `y` is its centre pixel and `radius` half of its nominal width."""

    shape: str
    color: str
    size: str
    x: int
    y: int
    radius: int
    tilt: int  # -1, 0 or 1 times the fixed angle of the renderer
    rgb: tuple[int, int, int]  # the palette colour after jitter


@dataclass(frozen=True, slots=True)
class Ground:
    """The mid-grey background: its tint, and the key of its noise."""

    tint: tuple[int, int, int]
    key: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects in painting order: a later one covers an earlier one."""

    objects: tuple[Thing, ...]
    ground: Ground


def scene(split: str, index: int, stream: int = SCENE) -> Scene:
    """Two to five objects that do not cover each other; the scenes of the first world, or of another's stream."""
    key = (stream, SPLITS[split], index)
    draws = Draws(*key)
    count = draws.weighted((2, 3, 4, 5), (3, 4, 5, 8))
    shapes = [draws.pick(SHAPES) for _ in range(count)]
    colors = [draws.pick(COLORS) for _ in range(count)]
    sizes = [draws.pick(SIZES) for _ in range(count)]
    # Independent draws would almost never repeat a colour, and every count above two would be rare.
    theme = draws.weighted((shapes, colors, sizes, None), (4, 4, 1, 1))
    if theme is not None:
        shared = draws.weighted(range(2, count + 1), (1, 1, 2, 4)[: count - 1])
        theme[:shared] = [theme[0]] * shared
    radii = [draws.pick(RADII[size]) for size in sizes]
    centres = _place(draws, radii, closeness=95)
    looks = zip(shapes, colors, sizes, radii, centres, strict=True)
    return Scene(tuple(_thing(draws, *look) for look in looks), ground(draws, *key))


def salient_scene(split: str, index: int, shape: str, color: str) -> Scene:
    """One large object, the class of the picture, among two to four small ones that may graze it."""
    key = (SPLITS[split], index)
    draws = Draws(SALIENT, *key)
    looks = [(shape, color, "large")]
    for _ in range(draws.between(2, 4)):
        # Half of the distractors share the colour or the shape, so neither alone betrays the class.
        kin = draws.weighted(("shape", "color", None), (1, 1, 2))
        its_shape = shape if kin == "shape" else draws.pick(SHAPES)
        its_color = color if kin == "color" else draws.pick(COLORS)
        looks.append((its_shape, its_color, "small"))
    radii = [draws.pick(RADII[size]) for _, _, size in looks]
    centres = _place(draws, radii, closeness=85)
    placed = zip(looks, radii, centres, strict=True)
    objects = tuple(_thing(draws, *look, radius, centre) for look, radius, centre in placed)
    return Scene(objects, ground(draws, SALIENT, *key))


def _place(draws: Draws, radii: Sequence[int], closeness: int) -> list[tuple[int, int]]:
    """Centres at least `closeness` percent of the summed radii apart.

    Sizes are fixed before and a crowded layout is started again, never its objects redrawn: dropping
    the ones that do not fit would make "large" rarer than "small".
    """
    while True:
        centres: list[tuple[int, int]] = []
        for radius in radii:
            centre = _free_centre(draws, radius, list(zip(centres, radii, strict=False)), closeness)
            if centre is None:
                closeness -= 1  # guarantees an end, and in practice costs a crowded scene a pixel
                break
            centres.append(centre)
        else:
            return centres


def _free_centre(
    draws: Draws, radius: int, taken: Sequence[tuple[tuple[int, int], int]], closeness: int
) -> tuple[int, int] | None:
    margin = radius + REACH
    first, last = -(-(margin - LATTICE // 2) // LATTICE), (IMAGE_SIZE - 1 - margin - LATTICE // 2) // LATTICE
    for _ in range(20):
        x = draws.between(first, last) * LATTICE + LATTICE // 2
        y = draws.between(first, last) * LATTICE + LATTICE // 2
        if all(
            ((x - u) ** 2 + (y - v) ** 2) * 10_000 >= ((radius + other) * closeness) ** 2 for (u, v), other in taken
        ):
            return x, y
    return None


def _thing(draws: Draws, shape: str, color: str, size: str, radius: int, centre: tuple[int, int]) -> Thing:
    tilt = draws.between(-1, 1)
    red, green, blue = (
        min(255, max(0, channel + draws.between(-COLOR_JITTER, COLOR_JITTER))) for channel in PALETTE[color]
    )
    return Thing(shape, color, size, *centre, radius, tilt, (red, green, blue))


def ground(draws: Draws, *key: int) -> Ground:
    grey = draws.between(96, 144)
    red, green, blue = (grey + draws.between(-16, 16) for _ in range(3))
    return Ground((red, green, blue), (GROUND, *key))
