"""POPE: does a model see objects that are not there (Li et al., EMNLP 2023, arXiv 2305.10355; RUCAIBox/POPE).

Half of the questions are about objects that are in the photograph, half about others: drawn at random, the most
frequent ones, or those that most often stand beside what is there. The number of tables is F1 or accuracy, each the
mean over these three subsets (LLaVA's 85.9 is F1). What a rule cannot read is nobody's "yes": see _yes_no.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vlbench.disk.storage import cannot_write, write_text
from vlbench.errors import UserError
from vlbench.task import Role, Sample, Score, task

from . import _pope_lists, _yes_no
from ._asked import UNPARSED, AskedOptions, lacking, located, unique
from ._files import inside, read_text, text_of, whole_number
from ._packed import Row
from ._tabled import Tabled, cell, image_of, said_yes

if TYPE_CHECKING:
    from vlbench.mini.world import World

SUBSETS = ("random", "popular", "adversarial")
INSTANCES = "instances_train2014.json"
SELECTED, TRAINED = 500, 5000  # images that the lists of select and train are about
COUNTS = 5  # of each subset: TP, FP, TN, FN, and answers that count for none of these
RATES = ("accuracy", "f1", "precision", "recall", "yes")
RULES: Mapping[str, Callable[[str], str]] = {
    "official": _yes_no.pope_official, "lmms": _yes_no.exact, "vlmevalkit": _yes_no.one_word,
}  # fmt: skip

Array = NDArray[np.float64]


class Question(NamedTuple):
    """One line of a list."""

    subset: str
    image: Path
    text: str
    yes: bool


class PopeOptions(AskedOptions):
    """Options of `task=pope`."""

    rule: Literal["official", "lmms", "vlmevalkit"] = Field(
        "official",
        description="how an answer is read: official takes all but no and not for yes; lmms wants exactly yes or no; "
        "vlmevalkit one of the two among the words",
    )
    max_length: int = Field(128, ge=1, description="tokens of an answer at most")


@task("pope", title="POPE, object hallucination", capability="answer", metric="f1", version=1, chance=66.67)
class POPE(Tabled):
    """`root` holds coco_pope_random.json, coco_pope_popular.json and coco_pope_adversarial.json (JSON lines; or has
    them in coco/ or output/coco/), and the images of COCO val2014 in val2014/ or images/. POPE has nothing to choose on
    or to learn from: `vlbench data prepare task=pope` makes such lists, in select/ and train/, of what COCO's
    instances_train2014.json says of the images in train2014/. In place of the three lists: POPE.tsv (VLMEvalKit's), or
    lmms-eval's data/test-*.parquet."""

    Options: ClassVar[type[AskedOptions]] = PopeOptions
    metrics: ClassVar[Mapping[str, Literal["higher", "lower"]]] = {
        "f1": "higher", "accuracy": "higher", "precision": "higher", "recall": "higher", "yes": "higher",
        **{f"{rate}/{subset}": "higher" for subset in SUBSETS for rate in ("f1", "accuracy")}, UNPARSED: "lower",
    }  # fmt: skip
    titles: ClassVar[Mapping[str, str]] = {"f1": "mean F1", "accuracy": "mean accuracy", "yes": "yes ratio"}
    corpus: ClassVar[bool] = True
    splits: ClassVar[tuple[str, ...]] = ("test", *SUBSETS)
    learned: ClassVar[Mapping[Role, str]] = {"train": "train", "select": "select"}
    tables: ClassVar[Mapping[str, Sequence[str]]] = {"test": ("POPE.tsv", "data/test-*.parquet")}
    options: PopeOptions

    @classmethod
    def mini_world(cls) -> World:
        from ._worlds.pope import WORLD

        return WORLD

    def lacks(self, split: str) -> list[str]:
        files = {self._list(split, subset): f"the {subset} questions" for subset in self._subsets(split)}
        absent = lacking({**files, self._images(split): f"the images of COCO {self._year(split)}"})
        if absent and self._is_built(split):
            return [
                *absent,
                f"(POPE has no {split} questions: vlbench data prepare task=pope makes them of {INSTANCES}.)",
            ]
        return absent

    def prepare(self, split: str, say: Callable[[str], None]) -> None:
        """Build the lists of select and train, unless they are there or COCO's annotations are not."""
        source = located(self.root, f"annotations/{INSTANCES}", INSTANCES)
        super().prepare(split, say)
        if not self._is_built(split) or not source.is_file() or not self.missing(split):
            return
        say(f"{source.name}: what each image shows")
        shown = _pope_lists.coco_objects(source)
        images = list(_pope_lists.chosen_images(shown))
        chosen = images[:SELECTED] if split == "select" else images[SELECTED : SELECTED + TRAINED]
        try:
            for subset, text in _pope_lists.lists(shown, chosen).items():
                write_text(self.root / split / f"coco_pope_{subset}.json", text)
        except OSError as error:
            raise cannot_write(self.root / split, error) from error

    def released(self, split: str) -> Mapping[str, Question]:
        return unique((pair for subset in self._subsets(split) for pair in self._lines(split, subset)), f"{self.root}")

    def from_table(self, row: Row, number: int, place: str) -> tuple[str, Question]:
        subset = cell(row, "category", place=place).strip().lower()
        if subset not in SUBSETS:
            raise UserError(f"{place} has the category {subset!r}, which should be {', '.join(SUBSETS)}.")
        text = cell(row, "question", place=place).removesuffix(_yes_no.REQUEST)
        key = f"{subset}/{cell(row, 'question_id', 'index', 'id', place=place)}"
        return key, Question(subset, image_of(row, place), text, said_yes(row, place))

    def sample(self, number: str, row: Question) -> Sample:
        answer = {"yes" if row.yes else "no": 1.0}
        return Sample(number, (row.image,), row.text, answer, row.image.stem, candidates=("yes", "no"))

    def score(self, sample: Sample, prediction: Mapping[str, Any]) -> Score:
        """COUNTS for each subset, of which one is 1, and whether the answer says neither yes nor no."""
        row: Question = self.row(sample)
        said = RULES[self.options.rule](prediction["answer"])
        counts = [0.0] * (COUNTS * len(SUBSETS) + 1)
        counts[COUNTS * SUBSETS.index(row.subset) + _place(said, row.yes, self.options.rule)] = 1.0
        counts[-1] = float(not said if self.options.rule != "official" else not _yes_no.asserted(prediction["answer"]))
        return counts

    def corpus_metric(self, sums: Array) -> Array:
        """Mean F1 in percent over the subsets that have questions, of sums (B, statistics)."""
        return 100 * _mean(_rates(sums)["f1"], _sizes(sums))

    def aggregate(self, samples: Sequence[Sample], scores: Sequence[Score]) -> dict[str, float]:
        sums = np.asarray(scores, dtype=np.float64).sum(axis=0, keepdims=True)
        rates, sizes = _rates(sums), _sizes(sums)
        metrics = {rate: 100 * float(_mean(rates[rate], sizes)[0]) for rate in RATES}
        for number, subset in enumerate(SUBSETS):
            if sizes[0, number]:
                metrics |= {f"{rate}/{subset}": 100 * float(rates[rate][0, number]) for rate in ("f1", "accuracy")}
        metrics[UNPARSED] = 100 * float(sums[0, -1]) / len(samples)
        return {metric: metrics[metric] for metric in self.metrics if metric in metrics}

    def _subsets(self, split: str) -> tuple[str, ...]:
        return (split,) if split in SUBSETS else SUBSETS

    def _is_built(self, split: str) -> bool:
        """Whether the split is none of POPE's own."""
        return split in self.learned.values()

    def _list(self, split: str, subset: str) -> Path:
        name = f"coco_pope_{subset}.json"
        if self._is_built(split):
            return self.root / split / name
        return located(self.root, name, f"coco/{name}", f"output/coco/{name}")

    def _year(self, split: str) -> str:
        return "train2014" if self._is_built(split) else "val2014"

    def _images(self, split: str) -> Path:
        year = self._year(split)
        return located(self.root, year, f"images/{year}" if self._is_built(split) else "images", f"images/{year}")

    def _lines(self, split: str, subset: str) -> Iterator[tuple[str, Question]]:
        """(id, question) of a list. Ids start again in each list, and have the subset's name before them here."""
        path, images = self._list(split, subset), self._images(split)
        begin = f"{split}/{subset}" if self._is_built(split) else subset
        for number, line in enumerate(read_text(path).splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                name, text, label = text_of(row["image"]), text_of(row["text"]), text_of(row["label"]).strip().lower()
                key = f"{begin}/{whole_number(row['question_id'])}"
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number}, is no question of POPE: {error!r}.") from None
            if label not in ("yes", "no"):
                raise UserError(f"{path}, line {number}: the label should be yes or no, not {row['label']!r}.")
            inside(name, path)
            yield key, Question(subset, images / name, text, label == "yes")


def _place(said: str, truth: bool, rule: str) -> int:
    """Which of COUNTS an answer counts for. VLMEvalKit counts an answer that says neither among the missed objects."""
    if said == "yes":
        return 0 if truth else 1
    if said == "no":
        return 3 if truth else 2
    return 3 if truth and rule == "vlmevalkit" else 4


def _counts(sums: Array) -> Array:
    """(B, subsets, COUNTS)"""
    return sums[:, :-1].reshape(len(sums), len(SUBSETS), COUNTS)


def _sizes(sums: Array) -> Array:
    """(B, subsets) questions."""
    sizes: Array = _counts(sums).sum(axis=2)
    return sizes


def _rates(sums: Array) -> dict[str, Array]:
    """Rate -> (B, subsets). Where the original divides by zero (no "yes" at all) it is 0."""
    tp, fp, tn, fn, _ = np.moveaxis(_counts(sums), 2, 0)
    precision, recall = _ratio(tp, tp + fp), _ratio(tp, tp + fn)
    return {
        "accuracy": _ratio(tp + tn, _sizes(sums)), "precision": precision, "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall), "yes": _ratio(tp + fp, _sizes(sums)),
    }  # fmt: skip


def _ratio(parts: Array, wholes: Array) -> Array:
    return np.divide(parts, wholes, out=np.zeros(parts.shape), where=wholes > 0)


def _mean(rates: Array, sizes: Array) -> Array:
    """(B,) over the subsets that have questions."""
    present = sizes > 0
    means: Array = (rates * present).sum(axis=1) / np.maximum(present.sum(axis=1), 1)
    return means
