"""The mini ImageNet, in the layout of the Kaggle release with its val sorted into classes."""

from ..render import render
from ..scenes import COLORS, SHAPES, salient_scene
from ..writer import Writer

CLASSES = tuple((shape, color) for shape in SHAPES for color in COLORS)
SPLITS = {"train": 6000, "val": 2000}  # images
IMAGES = sum(SPLITS.values())


def write(writer: Writer) -> None:
    for split, images in SPLITS.items():
        write_split(writer, split, images)


def write_split(writer: Writer, split: str, images: int) -> None:
    """Images by class, in turn, and the list of class names that the Kaggle release carries."""
    for label in range(len(CLASSES)):
        writer.folder(f"{split}/{wnid(label)}")
    for index in range(images):
        label = index % len(CLASSES)
        name = f"{wnid(label)}_{index}" if split == "train" else f"ILSVRC2012_val_{index + 1:08d}"
        pixels = render(salient_scene(split, index, *CLASSES[label]))
        writer.image(f"{split}/{wnid(label)}/{name}.JPEG", pixels)
    names = (f"{wnid(label)} {color} {shape}\n" for label, (shape, color) in enumerate(CLASSES))
    writer.text("LOC_synset_mapping.txt", "".join(names))


def wnid(label: int) -> str:
    """A name in the form of a WordNet id, in a range that WordNet does not use."""
    return f"n9{label:07d}"
