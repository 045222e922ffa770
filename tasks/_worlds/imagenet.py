"""The mini ImageNet, in the layout of the Kaggle release with its val sorted into classes."""

from vlbench.mini.render import render
from vlbench.mini.scenes import COLORS, SHAPES, salient_scene
from vlbench.mini.world import World
from vlbench.mini.writer import Writer

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


WORLD = World("imagenet", IMAGES, write, "f9e82cc581b4ff503508b0d5b7732923b1429fc9600c3ff36f47e2628408389b")
