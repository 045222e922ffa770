"""MMBench: questions of twenty abilities, each asked with its options in every rotation (Liu et al., ECCV 2024, arXiv
2307.06281; github.com/open-compass/MMBench).

A question counts where all its rotations are right (circular). "vanilla" is the accuracy of the first rotation alone.
Published numbers let a GPT model match what no rule could read; here that is wrong, as VLMEvalKit counts it without a
judge. test has no public answers: a run on it writes the table that the server takes.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vlbench.errors import UserError
from vlbench.task import Role, Sample, Score, task

from . import _choice
from ._asked import UNPARSED, AskedOptions, directions
from ._choice_table import Choice, ChoiceOptions, ChoiceTable, Rule
from ._files import whole_number
from ._packed import Row

if TYPE_CHECKING:
    from vlbench.mini.world import World

ROTATION = 1_000_000  # the index of a question's k-th rotation is its own plus k times this
ABILITIES = {
    "coarse_perception": "cp", "finegrained_perception (instance-level)": "fp-s",
    "finegrained_perception (cross-instance)": "fp-c", "logic_reasoning": "lr", "relation_reasoning": "rr",
    "attribute_reasoning": "ar",
}  # fmt: skip
TRAIN = "MMBench_TRAIN_EN.tsv"
UPLOAD = "mmbench_predictions.tsv"
HIT, QUESTION, VANILLA, MISSED, ROW = range(5)  # of a score
FIELDS = ("index", "question", "A", "B", "C", "D", "prediction")


class MMBenchOptions(ChoiceOptions):
    """Options of `task=mmbench`."""

    rule: Literal["vlmevalkit", "lmms"] = Field(
        "vlmevalkit",
        description="how an answer is asked for and read: as VLMEvalKit (the benchmark's own) or as lmms-eval, both "
        "without a judge model",
    )
    max_length: int = Field(1024, ge=1, description="tokens of an answer at most")


@task("mmbench", title="MMBench, circular", capability="answer", metric="accuracy", version=1)
class MMBench(ChoiceTable):
    """`root` holds MMBench_DEV_EN.tsv, MMBench_DEV_EN_V11.tsv, MMBench_TEST_EN.tsv or MMBench_TEST_EN_V11.tsv
    (VLMEvalKit's), or lmms-eval's en/dev-*.parquet and en/test-*.parquet. MMBench has no questions to learn from: for
    methods that want some, MMBench_TRAIN_EN.tsv is a table of your own in the same form."""

    Options: ClassVar[type[AskedOptions]] = MMBenchOptions
    asked: ClassVar[str] = "{}"
    tables: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "dev": ("MMBench_DEV_EN.tsv", "en/dev-*.parquet"), "dev_v11": ("MMBench_DEV_EN_V11.tsv",),
        "test": ("MMBench_TEST_EN.tsv", "en/test-*.parquet"), "test_v11": ("MMBench_TEST_EN_V11.tsv",),
        "train": (TRAIN,),
    }  # fmt: skip
    splits: ClassVar[tuple[str, ...]] = ("dev", "dev_v11", "test", "test_v11")
    learned: ClassVar[Mapping[Role, str]] = {"train": "train"}
    rules: ClassVar[Mapping[str, Rule]] = {"vlmevalkit": _choice.vlmevalkit, "lmms": _choice.lmms_mmbench}
    columns: ClassVar[tuple[str, ...]] = ("l2-category", "L2-category")
    named: ClassVar[Mapping[str, str]] = ABILITIES
    kinds: ClassVar[tuple[str, ...]] = tuple(ABILITIES.values())
    metrics: ClassVar[Mapping[str, Literal["higher", "lower"]]] = {
        **directions("accuracy", kinds), "vanilla": "higher",
    }  # fmt: skip
    titles: ClassVar[Mapping[str, str]] = {"accuracy": "circular accuracy", "vanilla": "first rotation"}
    corpus: ClassVar[bool] = True

    def missing(self, split: str) -> list[str]:
        sentences = super().missing(split)
        if split != "train" or self.table(split).sources or not sentences:
            return sentences
        return [
            f"MMBench has no training data: {self.root / TRAIN} would be a table of your own in its form; or name a "
            "task or a file of captions with calibration=TASK or calibration=FILE, or take a method that learns from "
            "nothing."
        ]

    @classmethod
    def mini_world(cls) -> World:
        from ._worlds.mmbench import WORLD

        return WORLD

    def rows(self, split: str) -> Mapping[str, Choice]:
        """A table of one's own counts from 0 as well: its ids are no ids of the questions that are reported."""
        rows = super().rows(split)
        return {f"train/{number}": row for number, row in rows.items()} if split == "train" else rows

    def labelled(self, split: str) -> bool:
        return not split.startswith("test")

    def number(self, row: Row, place: str) -> str:
        try:
            return str(whole_number(row["index"]))
        except (KeyError, ValueError):
            raise UserError(f"{place} has the index {row.get('index')!r}, which should be a number.") from None

    def text(self, row: Choice) -> str:
        """As the rule's evaluator asks. VLMEvalKit has a blank before its last line break."""
        lines = _choice.lines(row.options)
        if self.options.rule == "lmms":
            hint = f"{row.hint} " if row.hint else ""
            return (
                f"{hint}{row.question} There are several options:\n{lines}\n"
                "Answer with the option's letter from the given choices directly."
            )
        hint = f"Hint: {row.hint}\n" if row.hint else ""
        return (
            f"{hint}Question: {row.question}\nOptions:\n{lines}\n"
            "Please select the correct answer from the options above. \n"
        )

    def cluster(self, row: Choice) -> str:
        return str(_question(row.fields["index"]))

    def scores(self, samples: Sequence[Sample], predictions: Sequence[Mapping[str, Any]]) -> list[Score]:
        """[whether all rotations are right, 1, whether the first is] at the first rotation of a question and zeros at
        the others; then whether no rule could read the answer, and 1."""
        rows = [self.row(sample) for sample in samples]
        letters = [self.letter(row, said["answer"]) for row, said in zip(rows, predictions, strict=True)]
        right = [letter == row.answer for row, letter in zip(rows, letters, strict=True)]
        whole: defaultdict[int, bool] = defaultdict(lambda: True)
        for row, hit in zip(rows, right, strict=True):
            whole[_question(row.fields["index"])] &= hit
        scored: list[Score] = []
        for row, letter, hit in zip(rows, letters, right, strict=True):
            question = _question(row.fields["index"])
            first = int(row.fields["index"]) == question
            counted = [float(whole[question]), 1.0, float(hit)] if first else [0.0, 0.0, 0.0]
            scored.append([*counted, float(not letter), 1.0])
        return scored

    def corpus_metric(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """Circular accuracy in percent of summed scores (B, 5)."""
        accuracy: NDArray[np.float64] = 100 * sums[:, HIT] / np.maximum(sums[:, QUESTION], 1)
        return accuracy

    def aggregate(self, samples: Sequence[Sample], scores: Sequence[Score]) -> dict[str, float]:
        table = np.asarray(scores, dtype=np.float64)
        groups = self.groups(samples)
        sums = table.sum(axis=0)
        metrics = {
            "accuracy": float(self.corpus_metric(sums[None])[0]), UNPARSED: 100 * float(sums[MISSED] / sums[ROW]),
            "vanilla": 100 * float(sums[VANILLA] / max(sums[QUESTION], 1)),
        }  # fmt: skip
        for kind in self.kinds:
            mine = table[[groups.get(sample.id) == kind for sample in samples]].sum(axis=0)
            if mine[QUESTION]:
                metrics[f"accuracy/{kind}"] = float(self.corpus_metric(mine[None])[0])
        return {metric: metrics[metric] for metric in self.metrics if metric in metrics}

    def write_upload(self, samples: Sequence[Sample], predictions: Sequence[Mapping[str, Any]], folder: Path) -> Path:
        path = folder / UPLOAD
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, delimiter="\t", restval="")
            writer.writeheader()
            for sample, said in zip(samples, predictions, strict=True):
                row: Choice = self.row(sample)
                fields = {"index": sample.id, "question": row.question, "prediction": said["answer"]}
                writer.writerow({**fields, **{letter: row.options.get(letter, "") for letter in "ABCD"}})
        return path


def _question(index: Any) -> int:
    return int(index) % ROTATION
