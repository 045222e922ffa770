"""The mini COCO captions and the mini Flickr30K, in the layout of Karpathy's splits (dataset_*.json)."""

import json
from dataclasses import dataclass
from typing import Any

from vlbench.mini.captions import describe, tokens
from vlbench.mini.render import render
from vlbench.mini.scenes import scene
from vlbench.mini.world import World
from vlbench.mini.writer import Writer

STREAMS = {"coco": 4, "flickr30k": 5}  # of their scenes
CAPTIONS = 5  # an image
SIXTH_EVERY = 200  # images of COCO, one of which has a caption more


@dataclass(frozen=True)
class CaptionSplit:
    """Images of one split in one folder. first: the index of the first one's scene."""

    name: str
    folder: str
    images: int
    first_image_id: int
    scenes: str = ""  # the split that its scenes are of, where it is another
    first: int = 0


# The parts of val2014 come before train2014, as in Karpathy's file. restval is trained on.
COCO = (
    CaptionSplit("test", "val2014", images=1000, first_image_id=20_001),
    CaptionSplit("val", "val2014", images=400, first_image_id=30_001),
    CaptionSplit("restval", "val2014", images=300, first_image_id=40_001, scenes="train", first=5700),
    CaptionSplit("train", "train2014", images=5700, first_image_id=1),
)
FLICKR30K = (
    CaptionSplit("train", "flickr30k-images", images=3000, first_image_id=1_000_000_001),
    CaptionSplit("val", "flickr30k-images", images=300, first_image_id=2_000_000_001),
    CaptionSplit("test", "flickr30k-images", images=600, first_image_id=3_000_000_001),
)
COCO_IMAGES = sum(split.images for split in COCO)
FLICKR30K_IMAGES = sum(split.images for split in FLICKR30K)


def write_coco(writer: Writer) -> None:
    write_splits(writer, "coco", COCO)


def write_flickr30k(writer: Writer) -> None:
    write_splits(writer, "flickr30k", FLICKR30K)


def write_splits(writer: Writer, dataset: str, splits: tuple[CaptionSplit, ...]) -> None:
    """Images, and one file with the captions of all splits."""
    rows: list[dict[str, Any]] = []
    sentences = 0
    for split in splits:
        writer.folder(split.folder)
        taken: set[str] = set()
        for number in range(split.images):
            source, index = split.scenes or split.name, split.first + number
            picture = scene(source, index, STREAMS[dataset])
            image_id = split.first_image_id + number
            if dataset == "coco":
                file = f"COCO_{split.folder}_{image_id:012d}.jpg"
                names = {"filepath": split.folder, "filename": file, "cocoid": image_id}
            else:
                file = f"{image_id}.jpg"
                names = {"filename": file}
            writer.image(f"{split.folder}/{file}", render(picture))
            count = CAPTIONS + (dataset == "coco" and index % SIXTH_EVERY == 0)
            captions = describe(picture, STREAMS[dataset], source, index, count, taken)
            rows.append({**names, **_sentences(captions, len(rows), sentences), "split": split.name})
            sentences += count
    content = {"images": rows, "dataset": dataset}
    writer.text(f"dataset_{dataset}.json", json.dumps(content, separators=(",", ":")))


def _sentences(captions: list[str], image: int, first: int) -> dict[str, Any]:
    ids = list(range(first, first + len(captions)))
    sentences = [
        {"tokens": tokens(caption), "raw": caption, "imgid": image, "sentid": number}
        for number, caption in zip(ids, captions, strict=True)
    ]
    return {"imgid": image, "sentids": ids, "sentences": sentences}


COCO_WORLD = World("coco", COCO_IMAGES, write_coco, "726c20e22287dfe623a2629af6d89de14cdaac99260f7a951e8a5f002cfcc439")
FLICKR30K_WORLD = World(
    "flickr30k", FLICKR30K_IMAGES, write_flickr30k, "00a461ebd5067e28f1af2bc8ab27d4feb2d4231c6d6c91ff99177ed4ba0dfbd5"
)
