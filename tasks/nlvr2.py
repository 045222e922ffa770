"""NLVR2: is a sentence true of two photographs? (Suhr et al., ACL 2019, arXiv 1811.00491; lil.nlp.cornell.edu/nlvr).

Accuracy is over sentences with their pair; consistency is the share of sentences that are judged right of every pair
they were written for, as the official metrics.py counts it. Both in percent.

Two annotation layouts are read, at the root or in its data/, annotations/ or annotation/, the official one first:
- the official train.json, dev.json, test1.json and test2.json, a JSON object a line;
- BLIP's nlvr_train.json, nlvr_dev.json and nlvr_test.json (test1), one JSON list. Its rows have no identifier: it is
  made of the image's name, as "dev-850-0" of dev-850-0-img0.png, and of the sentence's number in its set, by first
  appearance. Groups, and with them consistency, are those of the official identifiers; the last field need not be.

Images lie in images/SPLIT or SPLIT at the root; those of train may be in its numbered folders.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, cast

from pydantic import Field

from vlbench.errors import UserError, did_you_mean
from vlbench.task import Role, Sample, Score, Task, TaskOptions, task

from ._files import identifier_of, inside, read_json, refuse, refuse_special, text_of

if TYPE_CHECKING:
    from vlbench.mini.world import World

OFFICIAL = {split: f"{split}.json" for split in ("train", "dev", "test1", "test2")}
BLIP = {"train": "nlvr_train.json", "dev": "nlvr_dev.json", "test1": "nlvr_test.json"}
PLACES = ("data", "annotations", "annotation", ".")
IMAGE_NAME = re.compile(r"([^-]+-\d+-\d+)-img[01]\.\w+")
LABELS = {"true": True, "false": False}
# What the originals' pre_caption leaves between words; "left," and "left-hand" are no "left" to them (quirk).
_BETWEEN = r"\s.!\"()*#:;~"
SIDE = re.compile(rf"(?<![^{_BETWEEN}])(?:left|right)(?![^{_BETWEEN}])", re.IGNORECASE | re.ASCII)


class _Row(NamedTuple):
    """One example. pair: SPLIT-SET-PAIR. identifier: empty where the file has none. images: as the file names them."""

    identifier: str
    pair: str
    images: tuple[PurePosixPath, PurePosixPath]
    sentence: str
    label: bool


class NLVR2Options(TaskOptions):
    """Options of `task=nlvr2`."""

    order: Literal["file", "reference-random"] = Field(
        "file",
        description="file: the images as they were shown; reference-random: half of the pairs swapped, and the words "
        "left and right with them, as BLIP and UPop do whenever they read one, at evaluation too",
    )
    order_seed: int = Field(0, description="reference-random: which half")


@task(
    "nlvr2",
    title="NLVR2 visual reasoning over two images",
    capability="judge",
    metric="accuracy",
    version=1,
    chance=50.0,
    training={
        "upop": {
            "train": 86_373, "epochs": {0.5: 15, 0.6666666666666666: 20, 0.75: 23, 0.8: 24, 0.9: 27}, "lr": 3e-6,
            "interval": 50, "l1": [4.8e-3, 2e-4],
        },
    },
)  # fmt: skip
class NLVR2(Task):
    """A sample's id is its identifier SPLIT-SET-PAIR-SENTENCE. Its cluster is the set of eight photographs that its
    sentence was written for: pairs of a set share sentences, photographs and the writer."""

    Options: ClassVar[type[TaskOptions]] = NLVR2Options
    metrics: ClassVar[Mapping[str, Literal["higher", "lower"]]] = {"accuracy": "higher", "consistency": "higher"}
    options: NLVR2Options

    @classmethod
    def roles(cls) -> dict[Role, str]:
        return {"train": "train", "select": "dev", "report": "test1"}

    @classmethod
    def report_splits(cls) -> tuple[str, ...]:
        return ("test1", "dev", "test2")

    @classmethod
    def mini_world(cls) -> World:
        from ._worlds.nlvr2 import WORLD

        return WORLD

    def missing(self, split: str) -> list[str]:
        lacking = [] if self._source(split) else [self._wanted(split)]
        folders = [self.root / "images" / split, self.root / split]
        if not any(folder.is_dir() for folder in folders):
            lacking.append(f"{folders[0]} should hold the images of {split}.")
        return lacking

    def samples(self, split: str) -> list[Sample]:
        path = self._source(split)
        if path is None:
            raise UserError(self._wanted(split))
        rows = _identified(_read_blip(path) if path.name == BLIP.get(split) else _read_official(path))
        refuse(
            (i for i, n in Counter(row.identifier for row in rows).items() if n > 1), f"{path} has identifiers twice"
        )
        find = _finder(self.root, split)
        refuse({i.name for row in rows for i in row.images if not find(i)}, f"{self.root} lacks images of {split}")
        return [self._sample(row, [cast(Path, find(image)) for image in row.images]) for row in rows]

    def score(self, sample: Sample, prediction: Mapping[str, Any]) -> Score:
        """1 where the sentence is judged right, else 0."""
        return float(prediction["answer"] == sample.target)

    def aggregate(self, samples: Sequence[Sample], scores: Sequence[Score]) -> dict[str, float]:
        right = cast(Sequence[float], scores)
        return {
            "accuracy": 100 * fmean(right),
            "consistency": 100 * consistency([s.id for s in samples], [score == 1 for score in right]),
        }

    def _sample(self, row: _Row, images: Sequence[Path]) -> Sample:
        cluster = row.pair.rpartition("-")[0]
        if self.options.order == "file" or not _is_swapped(row.identifier, self.options.order_seed):
            return Sample(row.identifier, tuple(images), row.sentence, row.label, cluster)
        return Sample(row.identifier, tuple(reversed(images)), exchange_sides(row.sentence), row.label, cluster)

    def _source(self, split: str) -> Path | None:
        if split not in OFFICIAL:
            raise UserError(f"nlvr2 has no split {split!r}. {did_you_mean(split, OFFICIAL)}")
        names = (OFFICIAL[split], *([BLIP[split]] if split in BLIP else []))
        paths = (self.root / place / name for name in names for place in PLACES)
        return next((path for path in paths if path.is_file()), None)

    def _wanted(self, split: str) -> str:
        blips = f", or BLIP's {BLIP[split]} (or have it in annotations/)" if split in BLIP else ""
        return f"{self.root / PLACES[0]} should hold the official {OFFICIAL[split]}{blips}."


def consistency(identifiers: Sequence[str], correct: Sequence[bool]) -> float:
    """Share, in [0, 1], of the sentences that are judged right of all their pairs (lil-lab/nlvr, eval/metrics.py)."""
    groups: dict[str, bool] = {}
    for identifier, right in zip(identifiers, correct, strict=True):
        split, group, _pair, sentence = identifier.split("-")
        key = f"{split}-{group}--{sentence}"
        groups[key] = groups.get(key, True) and right
    return fmean(groups.values())


def exchange_sides(sentence: str) -> str:
    """The sentence for the pair the other way round: each word left becomes right, and each right left."""
    return SIDE.sub(_other_side, sentence)


def _other_side(match: re.Match[str]) -> str:
    word = match[0]
    other = "right" if word.lower() == "left" else "left"
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other


def _is_swapped(identifier: str, seed: int) -> bool:
    """A coin for each example. The originals toss one at every reading; this is the same for every run and worker."""
    return hashlib.sha256(f"{seed}:{identifier}".encode()).digest()[0] % 2 == 1


def _read_official(path: Path) -> list[_Row]:
    rows = []
    for number, line in _lines(path):
        try:
            row = json.loads(line)
            identifier = text_of(row["identifier"])
            pair, _, sentence_number = identifier.rpartition("-")
            names = [f"{pair}-img{side}.png" for side in (0, 1)]
            if not sentence_number or not all(IMAGE_NAME.fullmatch(name) for name in names):
                raise ValueError(f"the identifier {identifier!r} is not SPLIT-SET-PAIR-SENTENCE")
            folder = inside(f"{identifier_of(row.get('directory', '.'))}/-", path).parent
            images = (folder / names[0], folder / names[1])
            rows.append(_Row(identifier, pair, images, text_of(row["sentence"]), _label(row["label"])))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: line {number} is not valid: {error!r}.") from None
    if not rows:
        raise UserError(f"{path} is empty.")
    return rows


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1."""
    refuse_special(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _read_blip(path: Path) -> list[_Row]:
    content = read_json(path)
    if not isinstance(content, list) or not content:
        raise UserError(f"{path} should be a JSON list of examples, as BLIP's {path.name} is.")
    rows = []
    for number, row in enumerate(content):
        try:
            left, right = (inside(text_of(name), path) for name in row["images"])
            pairs = [match and match[1] for match in map(IMAGE_NAME.fullmatch, (left.name, right.name))]
            if pairs[0] is None or pairs[0] != pairs[1]:
                raise ValueError(f"{left.name}, {right.name} are not the two images SPLIT-SET-PAIR-img0.png and -img1")
            identifier = text_of(row.get("identifier", ""))
            rows.append(_Row(identifier, pairs[0], (left, right), text_of(row["sentence"]), _label(row["label"])))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: entry {number} is not valid: {error!r}.") from None
    return rows


def _label(value: Any) -> bool:
    label = LABELS.get(str(value).lower())
    if label is None:
        raise ValueError(f"the label {value!r} is neither True nor False")
    return label


def _identified(rows: Sequence[_Row]) -> list[_Row]:
    """The rows, those without an identifier with one that is made up. One pair and sentence twice is two sentences."""
    numbers: defaultdict[str, dict[tuple[str, int], int]] = defaultdict(dict)  # set -> (sentence, repetition) -> number
    times: Counter[tuple[str, str]] = Counter()
    samples = []
    for row in rows:
        if not row.identifier:
            numbers_of_pair = numbers[row.pair.rpartition("-")[0]]
            number = numbers_of_pair.setdefault((row.sentence, times[row.pair, row.sentence]), len(numbers_of_pair))
            times[row.pair, row.sentence] += 1
            row = row._replace(identifier=f"{row.pair}-{number}")
        samples.append(row)
    return samples


def _finder(root: Path, split: str) -> Callable[[PurePosixPath], Path | None]:
    """Where an image of an annotation file lies: its folder is listed once, and none asked for each file."""
    listed = cache(lambda folder: frozenset(p.name for p in folder.iterdir()) if folder.is_dir() else frozenset())
    bases = (root / "images" / split, root / split)

    @cache
    def folders(parent: PurePosixPath) -> list[Path]:
        for prefix in ("images", split):  # "images/train/7" and "7" are one folder
            parent = parent.relative_to(prefix) if parent.is_relative_to(prefix) else parent
        return [*(base / parent for base in bases), *bases]

    @cache
    def find(image: PurePosixPath) -> Path | None:
        return next((f / image.name for f in folders(image.parent) if image.name in listed(f)), None)

    return find
