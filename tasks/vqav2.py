"""VQAv2: open questions about COCO photographs (Goyal et al., CVPR 2017, arXiv 1612.00837; visualqa.org).

The metric is the official accuracy (see _vqa_accuracy.py), in percent, over all questions and by answer type.
test-dev and test have no public answers: a run on them writes the file that EvalAI takes.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, cast

from pydantic import Field

from vlbench.errors import UserError, did_you_mean
from vlbench.task import Role, Sample, Score, Task, TaskOptions, held_out, task

from ._files import other_year, refuse
from ._vqa_accuracy import accuracy
from ._vqa_files import Label, by_question, label, question, read_candidates, refuse_other_images
from ._vqa_files import images as images_in
from ._vqa_files import target as target_of

if TYPE_CHECKING:
    from vlbench.mini.world import World

SELECT_PERCENT = 5  # of the training images
UPLOAD = "vqav2_results.json"


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
    training={
        "upop": {
            "train": 443_757, "epochs": {0.5: 10, 0.75: 15}, "lr": 2e-5, "interval": 1000, "l1": [1.44e-2, 5e-4],
        },
    },
)  # fmt: skip
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

    @classmethod
    def mini_world(cls) -> World:
        from ._worlds.vqav2 import WORLD

        return WORLD

    def missing(self, split: str) -> list[str]:
        files, train = self._files(split), self._files("train").annotations
        wanted = [(files.questions, f"questions of {split}"), (files.annotations, f"answers of {split}")]
        if self.options.decoding == "rank" and self.options.answers:
            wanted.append((self.options.answers, "candidate answers (a JSON list)"))
        elif self.options.decoding == "rank" and train != files.annotations:
            wanted.append((train, "answers of train, which give the candidates (or name a list: answers=)"))
        lacking = [f"{path} should hold the {what}." for path, what in wanted if path and not path.is_file()]
        if not files.images.is_dir():
            lacking.append(
                f"{files.images} should hold the images of {split}{other_year(self.root, files.images.name)}."
            )
        return lacking

    def samples(self, split: str) -> list[Sample]:
        files = self._files(split)
        questions = by_question(files.questions, "questions", question)
        labels = self._read_labels(files.annotations)
        if files.annotations:
            refuse(labels.keys() - questions.keys(), f"{files.questions} lacks questions that have answers")
            refuse(questions.keys() - labels.keys(), f"{files.annotations} lacks answers to questions")
            refuse_other_images(questions, labels, (files.questions, files.annotations))
        if split in ("train", "select"):
            kept = split == "select"
            questions = {q: row for q, row in questions.items() if _in_select(row[0]) is kept}
        images = images_in(files.images)
        refuse({str(i) for i, _ in questions.values() if i not in images}, f"{files.images} lacks images")
        target = cache(target_of)
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
            return read_candidates(self.options.answers)
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
        values: defaultdict[str, list[float]] = defaultdict(list)
        for sample, score in zip(samples, cast(Sequence[float], scores), strict=True):
            values["accuracy"].append(score)
            if sample.id in groups:
                values[f"accuracy/{groups[sample.id]}"].append(score)
        return {metric: 100 * fmean(values[metric]) for metric in self.metrics if metric in values}

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
        options = self.options
        if split == "val":  # where the official answers are none to other questions
            annotations = options.annotations or (None if options.questions else annotations)
            questions, images = options.questions or questions, options.images or images
        return Files(questions, annotations, images)

    def _place(self, folder: str, name: Path) -> Path:
        nested = self.root / folder / name
        return nested if nested.exists() and not (self.root / name).exists() else self.root / name

    def _read_labels(self, path: Path | None) -> dict[str, Label]:
        if path not in self._labels:
            self._labels[path] = by_question(path, "annotations", label) if path else {}
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
