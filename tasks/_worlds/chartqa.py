"""The mini ChartQA: charts of three to six bars, questions of two kinds in two files, as the release has them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from vlbench.mini.letters import Bar, bars, render_bars
from vlbench.mini.scenes import SPLITS as SCENES
from vlbench.mini.scenes import Draws
from vlbench.mini.world import World
from vlbench.mini.writer import Writer

STREAM = 17  # of its charts


@dataclass(frozen=True)
class ChartSplit:
    name: str
    scenes: str
    images: int
    questions: int  # an image and a half


SPLITS = (
    ChartSplit("train", "train", 3000, 2),
    ChartSplit("val", "test", 150, 1),
    ChartSplit("test", "val", 600, 1),
)
IMAGES = sum(split.images for split in SPLITS)


def write(writer: Writer) -> None:
    write_splits(writer, SPLITS)


def write_splits(writer: Writer, splits: tuple[ChartSplit, ...]) -> None:
    """Charts, and the questions of people and those made of captions."""
    for split in splits:
        writer.folder(f"{split.name}/png")
        halves: dict[str, list[dict[str, str]]] = {"human": [], "augmented": []}
        for index in range(split.images):
            shown = bars(split.scenes, index, STREAM)
            name = f"{split.name}{index:05d}.png"
            writer.image(f"{split.name}/png/{name}", render_bars(shown))
            draws = Draws(STREAM, SCENES[split.scenes], index, 1)
            for half, pool in (("human", _human(shown, draws)), ("augmented", _augmented(shown))):
                for text, label in _drawn(pool, draws, split.questions):
                    halves[half].append({"imgname": name, "query": text, "label": label})
        for half, rows in halves.items():
            writer.text(f"{split.name}/{split.name}_{half}.json", json.dumps(rows, separators=(",", ":")))


def _human(shown: Sequence[Bar], draws: Draws) -> list[tuple[str, str]]:
    """What takes more than one look."""
    order = sorted(shown, key=lambda bar: bar.value)
    first, second = draws.pick(shown[:-1]), shown[-1]
    higher = max(first, second, key=lambda bar: bar.value)
    least = draws.between(2, 8)
    more = sum(bar.value > least for bar in shown)
    return [
        ("Which bar is the highest?", order[-1].letter),
        ("Which bar is the lowest?", order[0].letter),
        ("How many bars are there?", str(len(shown))),
        (f"Which bar is higher, {first.letter} or {second.letter}?", higher.letter),
        ("What color is the highest bar?", order[-1].color),
        (f"How many bars are higher than {least}?", str(more)),
    ]


def _augmented(shown: Sequence[Bar]) -> list[tuple[str, str]]:
    """What one bar says."""
    values = [(f"What is the value of bar {bar.letter}?", str(bar.value)) for bar in shown]
    by_color = [(f"What is the value of the {bar.color} bar?", str(bar.value)) for bar in shown]
    colors = [(f"What color is bar {bar.letter}?", bar.color) for bar in shown]
    letters = [(f"Which bar is {bar.color}?", bar.letter) for bar in shown]
    return [*values, *by_color, *colors, *letters]


def _drawn(pool: Sequence[tuple[str, str]], draws: Draws, count: int) -> list[tuple[str, str]]:
    left = list(pool)
    return [left.pop(draws.below(len(left))) for _ in range(count)]


WORLD = World("chartqa", IMAGES, write, "fe1e0fe9e4c8776de8256f954909ee3189f33d9ede05291f7288f8093b55c58b")
