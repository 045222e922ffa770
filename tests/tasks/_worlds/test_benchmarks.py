"""The mini worlds of written answers: pinned digests of small ones, and what the tasks' own readers make of them."""

from __future__ import annotations

import csv
import importlib
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tasks.asked import make
from vlbench.mini.render import render
from vlbench.mini.scenes import scene
from vlbench.mini.writer import Writer

pope: Any = importlib.import_module("vlbench.tasks._worlds.pope")
mmbench: Any = importlib.import_module("vlbench.tasks._worlds.mmbench")
scienceqa: Any = importlib.import_module("vlbench.tasks._worlds.scienceqa")
textvqa: Any = importlib.import_module("vlbench.tasks._worlds.textvqa")
chartqa: Any = importlib.import_module("vlbench.tasks._worlds.chartqa")
POPE = (pope.PopeSplit("", "val2014", "val", 12), pope.PopeSplit("train", "train2014", "train", 9, first=200))
BENCH = (
    mmbench.BenchSplit("MMBench_DEV_EN.tsv", "dev", "val", 3, 2),
    mmbench.BenchSplit("MMBench_TEST_EN.tsv", "test", "test", 2, 1, answered=False),
    mmbench.BenchSplit("MMBench_TRAIN_EN.tsv", "train", "train", 3, 3, circular=False),
)
SQA = (scienceqa.SqaSplit("train", "train", "train", 9, 1), scienceqa.SqaSplit("test", "test", "val", 30, 20_001))
TEXT = (textvqa.TextSplit("val", "train_images", "val", 8, 3, 100_001),
        textvqa.TextSplit("test", "test_images", "test", 2, 2, 200_001, answered=False))  # fmt: skip
CHART = (chartqa.ChartSplit("test", "val", 20, 3), chartqa.ChartSplit("train", "train", 4, 2))
SMALL: dict[str, tuple[Callable[[Writer], None], str]] = {
    "pope": (lambda w: pope.write_splits(w, POPE), "669a15773d81610360f614b70084a6189595ba0296ca3ce2d1c7a788d9f873f8"),
    "mmbench": (
        lambda w: mmbench.write_splits(w, BENCH),
        "afaf3d849e68fa5724b2add65e3b540653ffd30fd1c0f4614cd8a992b464649c",
    ),
    "scienceqa": (
        lambda w: scienceqa.write_splits(w, SQA),
        "86ae45f7a6c142530ec0600734dbbe67f1baf119194ab76581e5b5301705bed6",
    ),
    "textvqa": (
        lambda w: textvqa.write_splits(w, TEXT),
        "41fd380b930dcaf7579994bacec36dfee617421d0fcc69652b1b331abc710910",
    ),
    "chartqa": (
        lambda w: chartqa.write_splits(w, CHART),
        "145b589716538b2712f4818d2b1dd53f3e4049306c117bb5e78fb0aa663c65e3",
    ),
}


def written(name: str, root: Path, **options: Any) -> Any:
    SMALL[name][0](Writer(root, 1))
    return make(name, root, **options)


@pytest.mark.parametrize("name", SMALL)
def test_small_worlds_are_pinned(name: str, tmp_path: Path) -> None:
    writer = Writer(tmp_path, 1)
    SMALL[name][0](writer)
    assert writer.digest() == SMALL[name][1]


def test_pope(tmp_path: Path) -> None:
    task = written("pope", tmp_path)
    samples = task.samples("test")
    assert [task.missing(split) for split in ("test", "train")] == [[], []]
    images = {s.images[0] for s in samples}
    assert Counter(s.id.split("/")[0] for s in samples) == dict.fromkeys(
        ("random", "popular", "adversarial"), 6 * len(images)
    )
    for sample in samples:
        picture = scene("val", int(sample.images[0].stem[-12:]) - 1, pope.STREAM)
        kinds = {f"{thing.color} {thing.shape}" for thing in picture.objects}
        kind = sample.text.removeprefix("Is there a ").removesuffix(" in the image?")
        assert (kind in kinds) is ("yes" in sample.target)
    assert not {s.images for s in task.samples("train")} & {s.images for s in samples}


def test_mmbench_is_circular_and_its_images_are_exact(tmp_path: Path) -> None:
    task = written("mmbench", tmp_path)
    samples = task.samples("dev")
    turns = defaultdict(list)
    for sample in samples:
        turns[sample.cluster].append(task.row(sample))
    assert len(turns) == 6
    for rows in turns.values():
        assert len(rows) == 4
        assert len({row.options[row.answer] for row in rows}) == 1
        assert sorted(row.answer for row in rows) == list("ABCD")
        assert len({tuple(sorted(row.options.values())) for row in rows}) == 1
    first = next(iter(turns.values()))[0]
    assert (np.asarray(Image.open(first.images[0])) == render(scene("val", 0, mmbench.STREAM))).all()
    assert len({s.images for s in samples}) == 3
    assert all(s.target is None for s in task.samples("test"))
    train = task.samples("train")
    assert len(train) == 9
    assert set(task.groups(samples).values()) <= set(task.kinds)
    with (tmp_path / "MMBench_DEV_EN.tsv").open(newline="") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    assert [len(row["image"]) > 64 for row in table].count(True) == 3  # the others name a row
    # All rotations of one question right, one rotation of another wrong: one of six.
    said = [row.answer if row is not turns["1"][2] else "Z" for row in map(task.row, samples)]
    scores = task.scores(samples, [{"answer": letter} for letter in said])
    assert task.aggregate(samples, scores)["accuracy"] == pytest.approx(500 / 6)


def test_scienceqa(tmp_path: Path) -> None:
    task = written("scienceqa", tmp_path)
    samples = task.samples("test")
    assert len(samples) == 30
    rows = [task.row(s) for s in samples]
    assert {len(row.options) for row in rows} == {2, 3, 4, 5}
    assert any(row.hint for row in rows)
    assert not all(row.hint for row in rows)
    assert set(task.groups(samples).values()) <= set(task.kinds)
    assert len({s.images for s in samples}) == 30


def test_textvqa(tmp_path: Path) -> None:
    task = written("textvqa", tmp_path)
    samples = task.samples("val")
    assert all(len(task.row(s).answers) == 10 for s in samples)
    for sample in samples:
        best = max(sample.target, key=lambda answer: sample.target[answer])
        assert task.score(sample, {"answer": best})[0] > 0.6
        assert task.score(sample, {"answer": "zzz"}) == [0.0, 0.0]
    assert all(s.target is None for s in task.samples("test"))
    read = make("textvqa", tmp_path, ocr=True).samples("val")
    assert all("Reference OCR token: " in s.text for s in read)
    for sample, plain in zip(read, samples, strict=True):  # what is asked for was read
        words = sample.text.partition("token: ")[2].lower().split(", ")
        best = max(plain.target, key=lambda answer: plain.target[answer])
        assert best in words or best in {word[0] for word in words}


def test_chartqa(tmp_path: Path) -> None:
    task = written("chartqa", tmp_path)
    samples = task.samples("test")
    assert Counter(task.groups(samples).values()) == {"human": 60, "augmented": 60}
    for sample in samples:
        index = int(sample.images[0].stem.removeprefix("test"))
        shown = importlib.import_module("vlbench.mini.letters").bars("val", index, chartqa.STREAM)
        (answer,) = sample.target
        assert answer == by_hand(sample.text, shown)


def by_hand(text: str, shown: Any) -> str:
    """The answer, from the words of a question."""
    by_letter, by_color = {b.letter: b for b in shown}, {b.color: b for b in shown}
    words = text.rstrip("?").replace(",", "").split()
    high, low = max(shown, key=lambda b: b.value), min(shown, key=lambda b: b.value)
    if text.startswith("Which bar is higher"):
        return str(max((by_letter[words[4]], by_letter[words[6]]), key=lambda b: b.value).letter)
    if text.startswith("How many bars are higher"):
        return str(sum(b.value > int(words[-1]) for b in shown))
    if text.startswith("What is the value of the"):
        return str(by_color[words[-2]].value)
    if text.startswith("What is the value of bar"):
        return str(by_letter[words[-1]].value)
    if text.startswith("What color is bar"):
        return str(by_letter[words[-1]].color)
    fixed = {
        "Which bar is the highest?": high.letter, "Which bar is the lowest?": low.letter,
        "How many bars are there?": str(len(shown)), "What color is the highest bar?": high.color,
    }  # fmt: skip
    return str(fixed[text] if text in fixed else by_color[words[-1]].letter)
