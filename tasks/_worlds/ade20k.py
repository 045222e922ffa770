"""The mini ADE20K, in the layout of ADEChallengeData2016: pictures, and maps in which 0 is no class."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlbench.mini.render import UInt8Array, label_map, render
from vlbench.mini.scenes import COLORS, SHAPES, Scene, scene
from vlbench.mini.world import World
from vlbench.mini.writer import Writer

STREAM = 7  # of its scenes
GROUND = 1
CLASSES = tuple((shape, color) for shape in SHAPES for color in COLORS)  # numbered from GROUND + 1
NAMES = ("ground", *(f"{color} {shape}" for shape, color in CLASSES))
# Pictures go in turn through these: one scene, two beside each other, two above each other.
LAYOUTS: tuple[tuple[int, int], ...] = ((1, 1), (1, 2), (1, 1), (2, 1), (1, 2), (2, 1), (1, 1), (1, 2), (2, 1), (1, 1))
RATIO_DIGITS = 4


@dataclass(frozen=True)
class AdeSplit:
    name: str
    prefix: str  # of file names
    scenes: str  # the split that its scenes are of
    images: int


SPLITS = (AdeSplit("training", "ADE_train", "train", 2500), AdeSplit("validation", "ADE_val", "val", 500))
IMAGES = sum(split.images for split in SPLITS)


def write(writer: Writer) -> None:
    write_splits(writer, SPLITS)


def write_splits(writer: Writer, splits: Sequence[AdeSplit]) -> None:
    """Pictures, maps and the table of classes."""
    pixels = np.zeros(len(NAMES) + 1, dtype=np.int64)
    shown = {split.name: np.zeros(len(NAMES) + 1, dtype=np.int64) for split in splits}
    for split in splits:
        writer.folder(f"images/{split.name}")
        writer.folder(f"annotations/{split.name}")
        first = 0
        for index in range(split.images):
            layout = LAYOUTS[index % len(LAYOUTS)]
            scenes = [scene(split.scenes, first + k, STREAM) for k in range(layout[0] * layout[1])]
            first += len(scenes)
            name = f"{split.prefix}_{index + 1:08d}"
            writer.image(f"images/{split.name}/{name}.jpg", _tiled([render(each) for each in scenes], layout))
            labels = _tiled([labels_of(each) for each in scenes], layout)
            writer.mask(f"annotations/{split.name}/{name}.png", labels)
            counts = np.bincount(labels.ravel(), minlength=len(NAMES) + 1)
            pixels += counts
            shown[split.name] += counts > 0
    writer.text("objectInfo150.txt", _table(pixels, *shown.values()))


def labels_of(picture: Scene) -> UInt8Array:
    """The class of each pixel, 0 on the rims of objects."""
    numbers = [GROUND + 1 + CLASSES.index((thing.shape, thing.color)) for thing in picture.objects]
    return label_map(picture, GROUND, numbers)


def _tiled(tiles: Sequence[UInt8Array], layout: tuple[int, int]) -> UInt8Array:
    """Scenes in so many rows and columns."""
    return np.concatenate(tiles, axis=1 if layout[1] > 1 else 0)


def _table(pixels: np.ndarray, training: np.ndarray, validation: np.ndarray) -> str:
    """For each class: its share of the pixels of all classes, and the pictures that show it."""
    rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    total = int(pixels[1:].sum())
    for number, name in enumerate(NAMES, start=1):
        ratio = (int(pixels[number]) * 10**RATIO_DIGITS + total // 2) // total
        stuff = int(number == GROUND)
        rows.append(f"{number}\t0.{ratio:04d}\t{training[number]}\t{validation[number]}\t{stuff}\t{name}")
    return "\n".join(rows) + "\n"


WORLD = World("ade20k", IMAGES, write, "40bd64b4307361b83fa947aa9c40d00c218a339404167fbba310b8d97ba90444")
