"""The mini POPE: its three lists about scenes, and lists to learn from and choose on, as `data prepare` makes them."""

from dataclasses import dataclass

from vlbench.mini.render import render
from vlbench.mini.scenes import scene
from vlbench.mini.world import World
from vlbench.mini.writer import Writer

from .._pope_lists import ASKED, lists

STREAM = 13  # of its scenes


@dataclass(frozen=True)
class PopeSplit:
    """Lists in one folder about images in another. shown: scenes; those with too few kinds of object are not asked."""

    lists: str  # folder; "": the root
    images: str
    scenes: str
    shown: int
    first: int = 0  # index of the first scene


SPLITS = (
    PopeSplit("", "val2014", "val", 320),
    PopeSplit("select", "train2014", "train", 200),
    PopeSplit("train", "train2014", "train", 3000, first=200),
)
IMAGES = sum(split.shown for split in SPLITS)


def write(writer: Writer) -> None:
    write_splits(writer, SPLITS)


def write_splits(writer: Writer, splits: tuple[PopeSplit, ...]) -> None:
    """Images, and the three lists of each split."""
    for split in splits:
        writer.folder(split.images)
        writer.folder(split.lists)
        shown: dict[str, list[str]] = {}
        for index in range(split.first, split.first + split.shown):
            picture = scene(split.scenes, index, STREAM)
            name = f"COCO_{split.images}_{index + 1:012d}.jpg"
            writer.image(f"{split.images}/{name}", render(picture))
            shown[name] = sorted({f"{thing.color} {thing.shape}" for thing in picture.objects})
        asked = [name for name, kinds in shown.items() if len(kinds) >= ASKED]
        for subset, text in lists(shown, asked).items():
            writer.text(f"{split.lists}/coco_pope_{subset}.json".lstrip("/"), text)


WORLD = World("pope", IMAGES, write, "43f4124f9132a1436ea4c78cdbf44bb0c2b914512101a9876ce15a36629686f5")
