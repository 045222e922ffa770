"""MME: two questions an image, one whose answer is yes and one no, in fourteen subtasks (Fu et al. 2023, arXiv
2306.13394).

The score of a subtask is its accuracy and the share of images both of whose questions are right, in percent, added: 0
to 200. Perception is the sum over ten subtasks (2,000 at most), cognition over four (800). Subtasks weigh alike,
whether they have 40 questions or 400. Celebrities and posters are photographs of people: the data are for research
alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vlbench.errors import UserError
from vlbench.task import Sample, Score, task

from . import _yes_no
from ._asked import UNPARSED, AskedOptions, unique
from ._files import IMAGE_SUFFIXES, read_text
from ._packed import Row
from ._tabled import Tabled, cell, image_of, said_yes

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SUBTASKS = (*PERCEPTION, *COGNITION)
RIGHT, ASKED, PAIRS, IMAGES = range(4)  # statistics of each subtask
COUNTS = 4
RULES: Mapping[str, Callable[[str], str]] = {
    "official": _yes_no.mme_official, "lmms": _yes_no.mme_lmms, "vlmevalkit": _yes_no.one_word,
}  # fmt: skip

Array = NDArray[np.float64]


class Question(NamedTuple):
    """One line of a text beside an image."""

    subtask: str
    image: Path
    text: str
    yes: bool


class MMEOptions(AskedOptions):
    """Options of `task=mme`."""

    rule: Literal["official", "lmms", "vlmevalkit"] = Field(
        "official",
        description="how an answer is read: official looks at its first four characters as they are; lmms strips "
        "blanks and periods first; vlmevalkit wants one of yes and no among the words",
    )


@task("mme", title="MME, perception and cognition", capability="answer", metric="perception", version=1)
class MME(Tabled):
    """`root` holds a folder a subtask: NAME.txt with two lines "question<tab>Yes" beside NAME.jpg or NAME.png, or the
    pictures in images/ and the texts in questions_answers_YN/. In place of the folders: MME.tsv (VLMEvalKit's), or
    lmms-eval's data/test-*.parquet."""

    Options: ClassVar[type[AskedOptions]] = MMEOptions
    metrics: ClassVar[Mapping[str, Literal["higher", "lower"]]] = {
        "perception": "higher", "cognition": "higher", **{f"score/{name}": "higher" for name in SUBTASKS},
        UNPARSED: "lower",
    }  # fmt: skip
    corpus: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 2000.0)
    splits: ClassVar[tuple[str, ...]] = ("test",)
    tables: ClassVar[Mapping[str, Sequence[str]]] = {"test": ("MME.tsv", "data/test-*.parquet")}
    options: MMEOptions

    def lacks(self, split: str) -> list[str]:
        return [f"{self.root / name} should hold the subtask {name}." for name in SUBTASKS if not self._has(name)]

    def released(self, split: str) -> Mapping[str, Question]:
        return unique((pair for name in SUBTASKS for pair in self._subtask(name)), str(self.root))

    def from_table(self, row: Row, number: int, place: str) -> tuple[str, Question]:
        subtask, image = cell(row, "category", place=place), image_of(row, place)
        if subtask not in SUBTASKS:
            raise UserError(f"{place} has the category {subtask!r}, which is no subtask of MME.")
        text = cell(row, "question", place=place).strip()
        return f"{subtask}/{image.stem}/{number}", Question(subtask, image, text, said_yes(row, place))

    def sample(self, number: str, row: Question) -> Sample:
        text = row.text.replace(_yes_no.REQUEST, "")
        cluster = f"{row.subtask}/{row.image.stem}"
        return Sample(number, (row.image,), text, {"yes" if row.yes else "no": 1.0}, cluster, candidates=("yes", "no"))

    def scores(self, samples: Sequence[Sample], predictions: Sequence[Mapping[str, Any]]) -> list[Score]:
        """COUNTS of each subtask: what a question adds to its own; the second question of an image says whether both
        are right. Then whether the answer says neither yes nor no."""
        pairs: defaultdict[str, list[bool]] = defaultdict(list)
        scored: list[Score] = []
        for sample, prediction in zip(samples, predictions, strict=True):
            row: Question = self.row(sample)
            said = RULES[self.options.rule](prediction["answer"])
            pair = pairs[sample.cluster]
            pair.append(said == ("yes" if row.yes else "no"))
            score = [0.0] * (COUNTS * len(SUBTASKS) + 1)
            at = COUNTS * SUBTASKS.index(row.subtask)
            score[at : at + COUNTS] = [float(pair[-1]), 1.0, float(len(pair) == 2 and all(pair)), float(len(pair) == 2)]
            score[-1] = float(not said)
            scored.append(score)
        return scored

    def corpus_metric(self, sums: Array) -> Array:
        """Perception, 0 to 2,000, of summed scores (B, statistics)."""
        perception: Array = _by_subtask(sums)[:, : len(PERCEPTION)].sum(axis=1)
        return perception

    def aggregate(self, samples: Sequence[Sample], scores: Sequence[Score]) -> dict[str, float]:
        sums = np.asarray(scores, dtype=np.float64).sum(axis=0, keepdims=True)
        each, asked = _by_subtask(sums)[0], sums[0, :-1].reshape(len(SUBTASKS), COUNTS)[:, ASKED]
        return {
            "perception": float(self.corpus_metric(sums)[0]), "cognition": float(each[len(PERCEPTION) :].sum()),
            **{f"score/{name}": float(each[i]) for i, name in enumerate(SUBTASKS) if asked[i]},
            UNPARSED: 100 * float(sums[0, -1]) / len(samples),
        }  # fmt: skip

    def _has(self, subtask: str) -> bool:
        return next(self._texts(subtask), None) is not None

    def _texts(self, subtask: str) -> Iterator[Path]:
        folder = self.root / subtask
        nested = folder / "questions_answers_YN"
        return iter(sorted((nested if nested.is_dir() else folder).glob("*.txt")))

    def _subtask(self, subtask: str) -> Iterator[tuple[str, Question]]:
        folder = self.root / subtask
        pictures = folder / "images" if (folder / "images").is_dir() else folder
        for path in self._texts(subtask):
            image = next((p for end in IMAGE_SUFFIXES if (p := pictures / f"{path.stem}{end}").is_file()), None)
            if image is None:
                raise UserError(f"{pictures} has no picture for {path.name}: put {path.stem}.jpg there.")
            lines = [line for line in read_text(path).splitlines() if line.strip()]
            if len(lines) != 2:
                raise UserError(f"{path} should have two questions, and has {len(lines)}.")
            for number, line in enumerate(lines):
                text, _, answer = line.rpartition("\t")
                if not text or answer.strip().lower() not in ("yes", "no"):
                    raise UserError(f"{path}, line {number + 1}, should be a question, a tab, and Yes or No.")
                yes = answer.strip().lower() == "yes"
                yield f"{subtask}/{path.stem}/{number}", Question(subtask, image, text.strip(), yes)


def _by_subtask(sums: Array) -> Array:
    """(B, subtasks) of 0 to 200; 0 for a subtask that was not asked."""
    counts = sums[:, :-1].reshape(len(sums), len(SUBTASKS), COUNTS)
    right = 100 * counts[..., RIGHT] / np.maximum(counts[..., ASKED], 1)
    both: Array = right + 100 * counts[..., PAIRS] / np.maximum(counts[..., IMAGES], 1)
    return both
