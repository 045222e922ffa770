"""The mini nocaps: its validation file with image domains, and the captions of COCO that its models learn from.

Objects are of the same kinds everywhere, so that a domain is how crowded a picture is: the more there is to mention,
the rarer is the sentence.
"""

import json
from typing import Any

from vlbench.mini.captions import describe
from vlbench.mini.render import render
from vlbench.mini.scenes import scene
from vlbench.mini.world import World
from vlbench.mini.writer import Writer

from .karpathy import CaptionSplit, write_splits

STREAM = 12  # of its scenes
CAPTIONS = 10  # an image
VAL = 300
FIRST_ID = 1
COCO = (
    CaptionSplit("val", "val2014", images=100, first_image_id=30_001),
    CaptionSplit("train", "train2014", images=600, first_image_id=1),
)
IMAGES = VAL + sum(split.images for split in COCO)
DOMAINS = {2: "in-domain", 3: "in-domain", 4: "near-domain", 5: "out-domain"}  # by the number of objects


def write(writer: Writer) -> None:
    write_world(writer, VAL, COCO)


def write_world(writer: Writer, val: int, coco: tuple[CaptionSplit, ...]) -> None:
    """nocaps's validation split, and Karpathy's file with its images."""
    writer.folder("images")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    taken: set[str] = set()
    for index in range(val):
        picture = scene("val", index, STREAM)
        image_id, name = FIRST_ID + index, f"{index:016x}.jpg"
        writer.image(f"images/{name}", render(picture))
        images.append(_image(image_id, name, DOMAINS[len(picture.objects)]))
        for text in describe(picture, STREAM, "val", index, CAPTIONS, taken):
            annotations.append({"image_id": image_id, "id": len(annotations), "caption": text})
    content = {
        "licenses": [], "info": {"description": "The mini world of vlbench in the format of nocaps.", "year": 2024},
        "images": images, "annotations": annotations,
    }  # fmt: skip
    writer.text("nocaps_val_4500_captions.json", json.dumps(content, separators=(",", ":")))
    write_splits(writer, "coco", coco)


def _image(image_id: int, name: str, domain: str) -> dict[str, Any]:
    return {
        "license": 0, "file_name": name, "coco_url": "", "height": 64, "width": 64, "date_captured": "",
        "open_images_id": name.removesuffix(".jpg"), "id": image_id, "domain": domain,
    }  # fmt: skip


WORLD = World("nocaps", IMAGES, write, "1c762fb5b5ede6cec22154e7bdddec879de6e6c8b52d38089a6cee86bca59b9f")
