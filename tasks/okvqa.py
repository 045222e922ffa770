"""OK-VQA: questions about COCO photographs that need outside knowledge (Marino et al., CVPR 2019, arXiv 1906.00067;
okvqa.allenai.org).

The metric is VQA's accuracy over the file's ten answers (see _vqa_accuracy.py), which in version 1.1 are stemmed by the
authors ("answer"; what was said is "raw_answer"). A model's answer is not stemmed here. BLIP-2's published numbers are
of answers that went through spaCy's lemmatizer first, and are not comparable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from vlbench.errors import UserError, did_you_mean
from vlbench.task import Role, Sample, Score, Task, TaskOptions, held_out, task

from ._answering import AnsweringOptions, frequent
from ._files import other_year, refuse
from ._vqa_accuracy import accuracy
from ._vqa_files import Label, by_question, images, label, question, refuse_other_images, target

if TYPE_CHECKING:
    from vlbench.mini.world import World

SELECT_PERCENT = 10  # of the training images
YEARS = {"train": "train2014", "select": "train2014", "val": "val2014"}


@task("okvqa", title="OK-VQA, outside knowledge", capability="answer", metric="accuracy", version=1, data="coco")
class OKVQA(Task):
    """`root` holds OpenEnded_mscoco_*_questions.json and mscoco_*_annotations.json (or has them in annotations/ or
    okvqa/), and the image folders train2014 and val2014 (or has them in images/)."""

    Options: ClassVar[type[TaskOptions]] = AnsweringOptions
    metrics: ClassVar[Mapping[str, Literal["higher", "lower"]]] = {"accuracy": "higher"}
    options: AnsweringOptions

    def __init__(self, root: Path, options: TaskOptions) -> None:
        super().__init__(root, options)
        self._labels: dict[Path, dict[str, Label]] = {}

    @classmethod
    def roles(cls) -> dict[Role, str]:
        return {"train": "train", "select": "select", "report": "val"}

    @classmethod
    def report_splits(cls) -> tuple[str, ...]:
        return ("val", "select")

    @classmethod
    def mini_world(cls) -> World:
        from ._worlds.okvqa import WORLD

        return WORLD

    def missing(self, split: str) -> list[str]:
        year = self._year(split)
        wanted = [(self._file(f"OpenEnded_mscoco_{year}_questions.json"), f"questions of {split}")]
        wanted.append((self._annotations(split), f"answers of {split}"))
        if self.options.decoding == "rank" and year != YEARS["train"]:
            wanted.append((self._annotations("train"), "answers of train, which give the candidates"))
        lacking = [f"{path} should hold the {what}." for path, what in wanted if not path.is_file()]
        if not self._images(split).is_dir():
            lacking.append(f"{self._images(split)} should hold the images of {split}{other_year(self.root, year)}.")
        return lacking

    def samples(self, split: str) -> list[Sample]:
        path = self._file(f"OpenEnded_mscoco_{self._year(split)}_questions.json")
        questions, labels = by_question(path, "questions", question), self._read(split)
        refuse(labels.keys() - questions.keys(), f"{path} lacks questions that have answers")
        refuse(questions.keys() - labels.keys(), f"{self._annotations(split)} lacks answers to questions")
        refuse_other_images(questions, labels, (path, self._annotations(split)))
        if split in ("train", "select"):
            questions = {q: row for q, row in questions.items() if _in_select(row[0]) is (split == "select")}
        shown = images(self._images(split))
        refuse({str(i) for i, _ in questions.values() if i not in shown}, f"{self._images(split)} lacks images")
        return [
            Sample(q, (shown[image],), text, target(labels[q].answers), str(image))
            for q, (image, text) in questions.items()
        ]

    def settings(self, split: str) -> dict[str, Any]:
        return self.options.settings(self.candidates if self.options.decoding == "rank" else [])

    @cached_property
    def candidates(self) -> list[str]:
        """The answers of each question's humans in train, once a question, those of select left out."""
        train = (one for one in self._read("train").values() if not _in_select(one.image_id))
        return frequent((answer for one in train for answer in dict.fromkeys(one.answers)), self.options.min_count)

    def score(self, sample: Sample, prediction: Mapping[str, Any]) -> Score:
        """Accuracy in [0, 1]."""
        for split in ("val", "train"):
            if self._annotations(split).is_file() and (question := self._read(split).get(sample.id)):
                return accuracy(prediction["answer"], question.answers)
        raise UserError(f"Question {sample.id} has no answers here, so that it cannot be scored.")

    def aggregate(self, samples: Sequence[Sample], scores: Sequence[Score]) -> dict[str, float]:
        return {"accuracy": 100 * fmean(cast(Sequence[float], scores))} if scores else {}

    def _read(self, split: str) -> dict[str, Label]:
        path = self._annotations(split)
        if path not in self._labels:
            self._labels[path] = by_question(path, "annotations", label)
        return self._labels[path]

    def _year(self, split: str) -> str:
        if split not in YEARS:
            raise UserError(f"okvqa has no split {split!r}. {did_you_mean(split, YEARS)}")
        return YEARS[split]

    def _annotations(self, split: str) -> Path:
        return self._file(f"mscoco_{self._year(split)}_annotations.json")

    def _file(self, name: str) -> Path:
        places = (self.root / folder / name for folder in ("", "annotations", "okvqa"))
        return next((place for place in places if place.is_file()), self.root / name)

    def _images(self, split: str) -> Path:
        year = self._year(split)
        nested = self.root / "images" / year
        return nested if nested.is_dir() and not (self.root / year).is_dir() else self.root / year


@cache
def _in_select(image_id: int) -> bool:
    return held_out(str(image_id), SELECT_PERCENT)
