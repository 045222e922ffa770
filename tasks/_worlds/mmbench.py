"""The mini MMBench: VLMEvalKit's table with the images inside, each question once for every rotation of its options.

Images are BMP, whose bytes no library decides, as they are a part of the table's text. The table is left unpacked, as
`vlbench data prepare` leaves it. MMBench_TRAIN_EN.tsv is what a user's own table to learn from would be.
"""

import base64
import struct
from dataclasses import dataclass

from vlbench.mini.choices import Choice, choices
from vlbench.mini.render import UInt8Array, render
from vlbench.mini.scenes import SPLITS as SCENES
from vlbench.mini.scenes import Draws, scene
from vlbench.mini.world import World
from vlbench.mini.writer import Writer

from .._packed import Packed

STREAM = 14  # of its scenes
ROTATION = 1_000_000
LETTERS = "ABCD"
ABILITIES = {
    "cp": "coarse_perception", "fp-s": "finegrained_perception (instance-level)",
    "fp-c": "finegrained_perception (cross-instance)", "lr": "logic_reasoning", "rr": "relation_reasoning",
    "ar": "attribute_reasoning",
}  # fmt: skip
COLUMNS = ("index", "question", "hint", *LETTERS, "answer", "category", "image", "l2-category", "split")


@dataclass(frozen=True)
class BenchSplit:
    """One table. circular: every rotation is a row. answered: test's answers are not public."""

    table: str
    split: str  # as the task names it
    scenes: str
    images: int
    questions: int  # an image
    circular: bool = True
    answered: bool = True


SPLITS = (
    BenchSplit("MMBench_DEV_EN.tsv", "dev", "val", 300, 2),
    BenchSplit("MMBench_TEST_EN.tsv", "test", "test", 20, 1, answered=False),
    BenchSplit("MMBench_TRAIN_EN.tsv", "train", "train", 1200, 6, circular=False),
)
IMAGES = sum(split.images for split in SPLITS)


def write(writer: Writer) -> None:
    write_splits(writer, SPLITS)


def write_splits(writer: Writer, splits: tuple[BenchSplit, ...]) -> None:
    """The tables, unpacked."""
    writer.folder("")
    for split in splits:
        rows: list[str] = []
        number = 0
        for index in range(split.images):
            picture = scene(split.scenes, index, STREAM)
            pixels = render(picture)
            writer.drawn()
            image, first = base64.b64encode(bitmap(pixels)).decode(), str(number)
            draws = Draws(STREAM, SCENES[split.scenes], index, 1)
            for choice in choices(picture, draws, split.questions):
                for turn in range(len(choice.options) if split.circular else 1):
                    cell = image if str(number) == first and not turn else first
                    rows.append(_row(choice, number, turn, cell, split))
                number += 1
        writer.text(split.table, "\n".join(["\t".join(COLUMNS), *rows]) + "\n")
        Packed(writer.root, f"mmbench-{split.split}", (split.table,)).prepare(lambda line: None)


def _row(choice: Choice, number: int, turn: int, image: str, split: BenchSplit) -> str:
    """One rotation: the options move up by `turn` places."""
    size = len(choice.options)
    options = [choice.options[(place + turn) % size] for place in range(size)]
    letter = LETTERS[(choice.answer - turn) % size]
    cells = {
        "index": number + ROTATION * turn, "question": choice.question, "hint": choice.hint,
        **dict(zip(LETTERS, options, strict=False)), "answer": letter if split.answered else "",
        "category": choice.ability, "image": image, "l2-category": ABILITIES[choice.ability], "split": split.split,
    }  # fmt: skip
    return "\t".join(str(cells.get(column, "")) for column in COLUMNS)


def bitmap(pixels: UInt8Array) -> bytes:
    """A picture (H, W, 3), W a multiple of four, as BMP of 24 bits."""
    height, width, _ = pixels.shape
    body = pixels[::-1, :, ::-1].tobytes()  # from the last row on, blue before red
    head = struct.pack("<2sIHHI", b"BM", 54 + len(body), 0, 0, 54)
    return head + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(body), 2835, 2835, 0, 0) + body


WORLD = World("mmbench", IMAGES, write, "3587dc3dc3189ba254ef50771fbd99d12e6249fa5963111087fa259ae25a3d8a")
