"""The mini NLVR2, in the layout of lil-lab/nlvr: JSON lines in data/, pictures in images/."""

import json
from dataclasses import dataclass
from typing import Any

from vlbench.mini.render import render
from vlbench.mini.scenes import scene
from vlbench.mini.statements import state
from vlbench.mini.world import World
from vlbench.mini.writer import Writer

STREAM = 6  # of its scenes
PAIRS = 4  # of a set
DIRECTORIES = 10  # that the pictures of train are spread over
VALIDATORS = 4  # of an example of dev and test1, besides the first


@dataclass(frozen=True)
class NlvrSplit:
    name: str
    scenes: str  # the split that its scenes are of
    sets: int
    sentences: int  # of a set


# Sentences are cheap, and a model that is shown each of 6,400 examples forty times learns them by heart (loss 0.03, and
# 52 % on dev): train has more of them a set than the others.
SPLITS = (NlvrSplit("train", "train", 800, 12), NlvrSplit("dev", "val", 60, 2), NlvrSplit("test1", "test", 250, 2))
IMAGES = sum(2 * PAIRS * split.sets for split in SPLITS)


def write(writer: Writer) -> None:
    for split in SPLITS:
        write_split(writer, split)


def write_split(writer: Writer, split: NlvrSplit) -> None:
    """Pictures, and the examples of all sets: each sentence with each pair."""
    writer.folder("data")
    rows = []
    for number in range(split.sets):
        first = 2 * PAIRS * number
        pictures = [scene(split.scenes, index, STREAM) for index in range(first, first + 2 * PAIRS)]
        pairs = list(zip(pictures[::2], pictures[1::2], strict=True))
        folder = f"images/{split.name}" + (f"/{number % DIRECTORIES}" if split.name == "train" else "")
        writer.folder(folder)
        for pair, sides in enumerate(pairs):
            for side, picture in enumerate(sides):
                writer.image(f"{folder}/{split.name}-{number}-{pair}-img{side}.png", render(picture))
        for sentence, (text, truths) in enumerate(state(pairs, split.scenes, number, split.sentences)):
            writers = split.sentences * number + sentence
            for pair, truth in enumerate(truths):
                rows.append(_example(split.name, number, pair, sentence, writers, text, str(truth)))
    writer.text(f"data/{split.name}.json", "".join(json.dumps(row) + "\n" for row in rows))


def _example(split: str, number: int, pair: int, sentence: int, writer: int, text: str, label: str) -> dict[str, Any]:
    example = {
        "validation": {str(writer + 1): label},
        "sentence": text,
        "left_url": f"https://example.org/{split}-{number}-{pair}-img0.png",
        "writer": str(writer),
        "label": label,
        "right_url": f"https://example.org/{split}-{number}-{pair}-img1.png",
        "synset": "shape",
        "query": f"some shapes{number}",
        "identifier": f"{split}-{number}-{pair}-{sentence}",
    }
    if split == "train":
        return {**example, "directory": number % DIRECTORIES}
    return {**example, "extra_validations": {str(writer + 2 + more): label for more in range(VALIDATORS)}}


WORLD = World("nlvr2", IMAGES, write, "e9b788bf4b3ca7ac6113e696c063f59fb25211fee812d07d59b52ac12230650f")
