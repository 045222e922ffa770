"""VQAv2: open questions about COCO photographs (Goyal et al., CVPR 2017, arXiv 1612.00837; visualqa.org).

The metric is the official accuracy (see _vqa_accuracy.py), in percent, over all questions and by answer type.
test-dev and test have no public answers: a run on them writes the file that EvalAI takes.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, cast

from pydantic import Field

from vlbench.errors import UserError, did_you_mean
from vlbench.task import Role, Sample, Score, Task, TaskOptions, held_out, task

from ._vqa_accuracy import accuracy

SELECT_PERCENT = 5  # of the training images
UPLOAD = "vqav2_results.json"
IMAGE_NAME = re.compile(r"(?:[^.].*\D)?(\d+)\.(?:jpe?g|png)", re.IGNORECASE)  # the id is the last number
SHOWN = 5  # ids that an error names

T = TypeVar("T")


class Files(NamedTuple):
    """What a split is read from. annotations: None where the answers are not public. images: a folder."""

    questions: Path
    annotations: Path | None
    images: Path


def _official(subset: str, images: str, annotated: bool = True) -> Files:
    annotations = Path(f"v2_mscoco_{subset}_annotations.json") if annotated else None
    return Files(Path(f"v2_OpenEnded_mscoco_{subset}_questions.json"), annotations, Path(images))


SPLITS = {
    "train": _official("train2014", "train2014"),
    "val": _official("val2014", "val2014"),
    "test-dev": _official("test-dev2015", "test2015", annotated=False),
    "test": _official("test2015", "test2015", annotated=False),
}


class Label(NamedTuple):
    """What the humans said. kind: "yes/no", "number" or "other". majority: `multiple_choice_answer`."""

    answers: tuple[str, ...]
    kind: str
    majority: str
    image_id: int


class VQAv2Options(TaskOptions):
    """Options of `task=vqav2`."""

    decoding: Literal["rank", "generate"] = Field(
        "rank", description="rank: the likeliest of a list of candidate answers; generate: free text"
    )
    k_test: int = Field(128, ge=1, description="rank: candidates scored in full, by likeliest first token")
    answers: Path | None = Field(None, description="rank: JSON list of candidates, not those of train")
    min_count: int = Field(9, ge=1, description="rank: training questions a candidate is the answer to")
    questions: Path | None = Field(None, description="your own questions (official format) in place of val's")
    annotations: Path | None = Field(None, description="their answers; without them they are not scored")
    images: Path | None = Field(None, description="folder of their images, named as in 000000000042.jpg")


@task(
    "vqav2",
    title="VQAv2 visual question answering",
    capability="answer",
    metric="accuracy",
    version=1,
    data="coco",
    chance=25.98,  # "yes" to every question of test-standard (Goyal et al. 2017, arXiv 1612.00837)
)
class VQAv2(Task):
    """`root` holds the official files (or has them in annotations/) and the image folders (or in images/)."""

    Options: ClassVar[type[TaskOptions]] = VQAv2Options
    metrics: ClassVar[Mapping[str, Literal["higher", "lower"]]] = {
        "accuracy": "higher",
        "accuracy/yes_no": "higher",
        "accuracy/number": "higher",
        "accuracy/other": "higher",
    }
    options: VQAv2Options

    def __init__(self, root: Path, options: TaskOptions) -> None:
        super().__init__(root, options)
        self._labels: dict[Path | None, dict[str, Label]] = {}  # an annotation file -> question id -> label

    @classmethod
    def roles(cls) -> dict[Role, str]:
        return {"train": "train", "select": "select", "report": "val"}

    @classmethod
    def report_splits(cls) -> tuple[str, ...]:
        return ("val", "test-dev", "test", "select")

    def labelled(self, split: str) -> bool:
        return self._files(split).annotations is not None

    def missing(self, split: str) -> list[str]:
        files, train = self._files(split), self._files("train").annotations
        wanted = [(files.questions, f"questions of {split}"), (files.annotations, f"answers of {split}")]
        if self.options.decoding == "rank" and self.options.answers:
            wanted.append((self.options.answers, "candidate answers (a JSON list)"))
        elif self.options.decoding == "rank" and train != files.annotations:
            wanted.append((train, "answers of train, which give the candidates (or name a list: answers=)"))
        lacking = [f"{path} should hold the {what}." for path, what in wanted if path and not path.is_file()]
        if not files.images.is_dir():
            lacking.append(f"{files.images} should hold the images of {split}.")
        return lacking

    def samples(self, split: str) -> list[Sample]:
        files = self._files(split)
        questions = _by_question(files.questions, "questions", _question)
        labels = self._read_labels(files.annotations)
        if files.annotations:
            _refuse(labels.keys() - questions.keys(), f"{files.questions} lacks questions that have answers")
            _refuse(questions.keys() - labels.keys(), f"{files.annotations} lacks answers to questions")
        if split in ("train", "select"):
            kept = split == "select"
            questions = {q: row for q, row in questions.items() if _in_select(row[0]) is kept}
        images = _images(files.images)
        _refuse({str(i) for i, _ in questions.values() if i not in images}, f"{files.images} lacks images")
        target = cache(_target)
        return [
            Sample(q, (images[image],), text, target(labels[q].answers) if labels else None, str(image))
            for q, (image, text) in questions.items()
        ]

    def settings(self, split: str) -> dict[str, Any]:
        candidates = self.candidates if self.options.decoding == "rank" else []
        return {"decoding": self.options.decoding, "k_test": self.options.k_test, "candidates": candidates}

    @cached_property
    def candidates(self) -> list[str]:
        """The list `answers=`, or each `multiple_choice_answer` of min_count or more questions of train (9 in
        LXMERT and OpenVQA), the most frequent first, then by the alphabet. Answers of select would
        flatter what is tuned on it, and are left out."""
        if self.options.answers:
            return _read_candidates(self.options.answers)
        path = self._files("train").annotations
        train = [label for label in self._read_labels(path).values() if not _in_select(label.image_id)]
        counts = Counter(label.majority for label in train)
        frequent = [answer for answer, n in counts.items() if answer and n >= self.options.min_count]
        if not frequent:
            problem = f"No answer in {path} is that of min_count={self.options.min_count} questions"
            raise UserError(f"{problem}: lower it, or name a JSON list with answers=.")
        return sorted(frequent, key=lambda answer: (-counts[answer], answer))

    def score(self, sample: Sample, prediction: Mapping[str, Any]) -> Score:
        """Accuracy in [0, 1]."""
        return accuracy(prediction["answer"], self._label(sample).answers)

    def aggregate(self, samples: Sequence[Sample], scores: Sequence[Score]) -> dict[str, float]:
        groups = self.groups(samples)
        found: defaultdict[str, list[float]] = defaultdict(list)
        for sample, score in zip(samples, cast(Sequence[float], scores), strict=True):
            found["accuracy"].append(score)
            if sample.id in groups:
                found[f"accuracy/{groups[sample.id]}"].append(score)
        return {metric: 100 * fmean(found[metric]) for metric in self.metrics if metric in found}

    def groups(self, samples: Sequence[Sample]) -> dict[str, str]:
        kinds = {s.id: self._label(s).kind.replace("/", "_") for s in samples if s.target is not None}
        return {sample_id: kind for sample_id, kind in kinds.items() if f"accuracy/{kind}" in self.metrics}

    def write_upload(self, samples: Sequence[Sample], predictions: Sequence[Mapping[str, Any]], folder: Path) -> Path:
        pairs = zip(samples, predictions, strict=True)
        rows = [{"question_id": int(sample.id), "answer": said["answer"]} for sample, said in pairs]
        path = folder / UPLOAD
        path.write_text(json.dumps(rows), encoding="utf-8")
        return path

    def _files(self, split: str) -> Files:
        if split not in (*SPLITS, "select"):
            raise UserError(f"vqav2 has no split {split!r}. {did_you_mean(split, (*SPLITS, 'select'))}")
        questions, annotations, images = SPLITS["train" if split == "select" else split]
        questions, images = self._place("annotations", questions), self._place("images", images)
        annotations = annotations and self._place("annotations", annotations)
        own = self.options
        if split == "val":  # where the official answers are none to other questions
            annotations = own.annotations or (None if own.questions else annotations)
            questions, images = own.questions or questions, own.images or images
        return Files(questions, annotations, images)

    def _place(self, folder: str, name: Path) -> Path:
        nested = self.root / folder / name
        return nested if nested.exists() and not (self.root / name).exists() else self.root / name

    def _read_labels(self, path: Path | None) -> dict[str, Label]:
        if path not in self._labels:
            self._labels[path] = _by_question(path, "annotations", _label) if path else {}
        return self._labels[path]

    @cached_property
    def _annotated(self) -> list[Path]:
        paths = (self._files(split).annotations for split in ("val", "train"))
        return [path for path in paths if path and path.is_file()]

    def _label(self, sample: Sample) -> Label:
        """Files that have been read come first: a process that only scores reads the others when it must."""
        for path in sorted(self._annotated, key=lambda path: path not in self._labels):
            if label := self._read_labels(path).get(sample.id):
                return label
        raise UserError(f"Question {sample.id} has no answers here, so that it cannot be scored.")


@cache  # 83,000 training images, asked for at each of 444,000 questions
def _in_select(image_id: int) -> bool:
    return held_out(str(image_id), SELECT_PERCENT)


def _target(answers: tuple[str, ...]) -> dict[str, float]:
    """Answer -> share of the humans who gave it: the weights of BLIP's loss."""
    return {answer: count / len(answers) for answer, count in Counter(answers).items()}


def _question(row: dict[str, Any]) -> tuple[int, str]:
    return int(row["image_id"]), str(row["question"])


def _label(row: dict[str, Any]) -> Label:
    answers = tuple(map(sys.intern, row["answers"]))
    if len(answers) < 2:
        raise ValueError("it needs the answers of two humans or more")
    kind, majority = row.get("answer_type", ""), row.get("multiple_choice_answer", "")
    return Label(answers, sys.intern(kind), sys.intern(majority), int(row["image_id"]))


def _by_question(path: Path, key: str, parse: Callable[[dict[str, Any]], T]) -> dict[str, T]:
    """Question id -> parsed row of the list `key` in an official file, in the file's order."""
    content = _read_json(path, _fold_answer)
    rows = content.get(key) if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise UserError(f"{path} is not a VQA file: it has no list {key!r}.")
    found: dict[str, T] = {}
    twice: set[str] = set()
    for number, row in enumerate(rows):
        try:
            question_id, value = str(int(row["question_id"])), parse(row)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: entry {number} of {key!r} is not valid: {error!r}.") from None
        if question_id in found:
            twice.add(question_id)
        found[question_id] = value
    _refuse(twice, f"{path} has question ids twice")
    return found


def _fold_answer(row: dict[str, Any]) -> Any:
    """{"answer": text, "answer_id": ...} -> text, at once: train has 4.4 million of these records."""
    return row["answer"] if "answer" in row and "question_id" not in row else row


def _read_candidates(path: Path) -> list[str]:
    answers = _read_json(path)
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise UserError(f'{path} should be a JSON list of candidate answers, as in ["yes", "no"].')
    return answers


def _read_json(path: Path, fold: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    try:
        return json.loads(path.read_bytes(), object_hook=fold)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON, or cut short: {error}.") from None


def _images(folder: Path) -> dict[int, Path]:
    """Image id -> file, from one listing: COCO_val2014_000000000042.jpg and 42.png are both image 42."""
    try:
        paths = list(folder.iterdir())
    except OSError as error:
        raise UserError(f"The image folder {folder} cannot be read: {error.strerror}.") from None
    found: dict[int, Path] = {}
    for path in paths:
        if match := IMAGE_NAME.fullmatch(path.name):
            twin = found.setdefault(int(match[1]), path)
            if twin is not path:
                raise UserError(f"{folder} has image {match[1]} twice: {twin.name} and {path.name}.")
    return found


def _refuse(ids: Iterable[str], problem: str) -> None:
    """Raise if there are such ids, naming the first few."""
    listed = sorted(ids, key=lambda text: (len(text), text))
    if listed:
        more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
        raise UserError(f"{problem}: {', '.join(listed[:SHOWN])}{more}.")
