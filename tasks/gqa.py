"""GQA: questions about the objects, attributes and relations of photographs, made from their scene graphs (Hudson &
Manning, CVPR 2019, arXiv 1902.09506; cs.stanford.edu/people/dorarad/gqa).

Balanced questions; the reported split is testdev, whose 398 images are no part of train and val. An answer is right
where it is the one of the file, both normalised as VQA's evaluator does: the official evaluator compares them as they
are, and models write "Yes." and "a dog".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, cast

from vlbench.errors import UserError, did_you_mean
from vlbench.task import Role, Sample, Score, Task, TaskOptions, held_out, task

from ._answering import AnsweringOptions, frequent
from ._asked import unique
from ._files import IMAGE_SUFFIXES, inside, read_json, refuse
from ._vqa_accuracy import normalise

if TYPE_CHECKING:
    from vlbench.mini.world import World

SELECT_PERCENT = 5  # of the training images
FILES = {name: f"{name}_balanced_questions.json" for name in ("train", "val", "testdev")}
FOLDERS = ("", "questions", "questions1.2")  # where the questions lie
KINDS = ("verify", "query", "choose", "logical", "compare")


class Question(NamedTuple):
    """One question. kind: the structural type, one of KINDS."""

    image: str
    text: str
    answer: str
    kind: str


@task("gqa", title="GQA visual question answering", capability="answer", metric="accuracy", version=1)
class GQA(Task):
    """`root` holds train_, val_ and testdev_balanced_questions.json (or has them in questions/ or questions1.2/), and
    the images in images/."""

    Options: ClassVar[type[TaskOptions]] = AnsweringOptions
    metrics: ClassVar[Mapping[str, Literal["higher", "lower"]]] = dict.fromkeys(
        ("accuracy", *(f"accuracy/{kind}" for kind in KINDS)), "higher"
    )
    options: AnsweringOptions

    @classmethod
    def roles(cls) -> dict[Role, str]:
        return {"train": "train", "select": "select", "report": "testdev"}

    @classmethod
    def report_splits(cls) -> tuple[str, ...]:
        return ("testdev", "val", "select")

    @classmethod
    def mini_world(cls) -> World:
        from ._worlds.gqa import WORLD

        return WORLD

    def missing(self, split: str) -> list[str]:
        wanted = {split, "train"} if self.options.decoding == "rank" else {split}
        files = sorted({self._file(name) for name in wanted})
        lacking = [f"{path} should hold the questions." for path in files if not path.is_file()]
        if not (self.root / "images").is_dir():
            lacking.append(f"{self.root / 'images'} should hold the images.")
        return lacking

    def samples(self, split: str) -> list[Sample]:
        questions = self._questions(split)
        images = _listing(self.root / "images")
        refuse({q.image for q in questions.values()} - images.keys(), f"{self.root / 'images'} lacks images")
        return [Sample(i, (images[q.image],), q.text, {q.answer: 1.0}, q.image) for i, q in questions.items()]

    def settings(self, split: str) -> dict[str, Any]:
        return self.options.settings(self.candidates if self.options.decoding == "rank" else [])

    @cached_property
    def candidates(self) -> list[str]:
        """The answers of min_count or more questions of train, those of select left out."""
        return frequent((q.answer for q in self._questions("train").values()), self.options.min_count)

    def score(self, sample: Sample, prediction: Mapping[str, Any]) -> Score:
        """0 or 1."""
        return float(normalise(prediction["answer"]) == normalise(next(iter(sample.target))))

    def aggregate(self, samples: Sequence[Sample], scores: Sequence[Score]) -> dict[str, float]:
        groups = self.groups(samples)
        values: defaultdict[str, list[float]] = defaultdict(list)
        for sample, score in zip(samples, cast(Sequence[float], scores), strict=True):
            values["accuracy"].append(score)
            if sample.id in groups:
                values[f"accuracy/{groups[sample.id]}"].append(score)
        return {metric: 100 * fmean(values[metric]) for metric in self.metrics if metric in values}

    def groups(self, samples: Sequence[Sample]) -> dict[str, str]:
        wanted = {sample.id for sample in samples}
        kinds: dict[str, str] = {}
        for name in ("testdev", "val", "train"):  # one file has them all, but for samples of several splits
            if wanted - kinds.keys() and self._file(name).is_file():
                kinds.update({i: q.kind for i, q in self._read(name).items() if i in wanted})
        return {i: kind for i, kind in kinds.items() if kind in KINDS}

    def _questions(self, split: str) -> dict[str, Question]:
        questions = self._read("train" if split == "select" else split)
        if split in ("train", "select"):
            return {i: q for i, q in questions.items() if _in_select(q.image) is (split == "select")}
        return questions

    def _read(self, name: str) -> dict[str, Question]:
        if name not in self._cached:
            self._cached[name] = _read_questions(self._file(name))
        return self._cached[name]

    @cached_property
    def _cached(self) -> dict[str, dict[str, Question]]:
        return {}

    def _file(self, split: str) -> Path:
        if split not in (*FILES, "select"):
            raise UserError(f"gqa has no split {split!r}. {did_you_mean(split, (*FILES, 'select'))}")
        name = FILES["train" if split == "select" else split]
        return next((p for folder in FOLDERS if (p := self.root / folder / name).is_file()), self.root / name)


@cache  # 72,000 training images, asked for at each of 943,000 questions
def _in_select(image: str) -> bool:
    return held_out(image, SELECT_PERCENT)


def _read_questions(path: Path) -> dict[str, Question]:
    """Question id -> question, in the file's order."""
    content = read_json(path, _fold)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} is not a GQA file: it should map question ids to questions.")
    wrong = next((i for i, q in content.items() if not isinstance(q, Question)), None)
    if wrong is not None:
        raise UserError(
            f"{path}: question {wrong} lacks its imageId, question or answer, or has another kind of value there."
        )
    for image in {q.image for q in content.values()}:
        inside(image, path)
    return content


def _fold(row: dict[str, Any]) -> Any:
    """A question as it is read: the scene graphs' programs beside it are nine tenths of the file."""
    if not all(isinstance(row.get(key), str) for key in ("imageId", "question", "answer")):
        return row
    types = row.get("types")
    kind = str(types.get("structural", "")) if isinstance(types, dict) else ""
    return Question(row["imageId"], row["question"], row["answer"], kind)


def _listing(folder: Path) -> dict[str, Path]:
    """Image id -> file, from one listing of 148,000."""
    try:
        pictures = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
    except OSError as error:
        raise UserError(f"The image folder {folder} cannot be read: {error.strerror}.") from None
    return unique(((path.stem, path) for path in pictures if not path.name.startswith(".")), str(folder))
