"""MMStar: 1,500 questions that cannot be answered from their text alone (Chen et al., NeurIPS 2024, arXiv 2403.20330).

Run it with blind=true as well: what a model gets right without the image is what it remembers. Its questions are from
MMBench, SEED-Bench, ScienceQA, MMMU, AI2D and MathVista, so that it is no number independent of theirs.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import ClassVar, Literal, cast

from vlbench.task import Sample, Score, task

from . import _choice
from ._asked import directions
from ._choice import Options
from ._choice_table import Choice, ChoiceTable, Rule

ABILITIES = (
    "coarse perception", "fine-grained perception", "instance reasoning", "logical reasoning", "science & technology",
    "math",
)  # fmt: skip
FOUR = "ABCD"
WITHIN = re.compile(r"(?:^|[,.;]?\s)([A-D]):\s")


def _lmms(text: str, options: Options) -> str:
    return _choice.lmms_letter(text, FOUR)


@task("mmstar", title="MMStar", capability="answer", metric="accuracy", version=1, chance=25.0)
class MMStar(ChoiceTable):
    """`root` holds MMStar.tsv (VLMEvalKit's), or lmms-eval's mmstar.parquet or val-*.parquet, whose options stand in
    the question."""

    asked: ClassVar[str] = "{}\nAnswer with the option's letter from the given choices directly"
    tables: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "val": ("MMStar.tsv", "mmstar.parquet", "val-*.parquet", "data/val-*.parquet")
    }
    splits: ClassVar[tuple[str, ...]] = ("val",)
    rules: ClassVar[Mapping[str, Rule]] = {"lmms": _lmms, "vlmevalkit": _choice.vlmevalkit}
    kinds: ClassVar[tuple[str, ...]] = ABILITIES
    metrics: ClassVar[Mapping[str, Literal["higher", "lower"]]] = {**directions("accuracy", kinds), "average": "higher"}
    titles: ClassVar[Mapping[str, str]] = {"average": "mean over 18 abilities"}

    def text(self, row: Choice) -> str:
        return row.question if row.fields.get("within") else super().text(row)

    def aggregate(self, samples: Sequence[Sample], scores: Sequence[Score]) -> dict[str, float]:
        """average: lmms-eval's number, which weighs the finer abilities equally."""
        finer: defaultdict[str, list[float]] = defaultdict(list)
        for sample, score in zip(samples, cast(Sequence[list[float]], scores), strict=True):
            fields = self.row(sample).fields
            finer[str(fields.get("l2_category", fields.get("l2-category", "")))].append(score[0])
        average = 100 * fmean(fmean(part) for part in finer.values())
        return {**super().aggregate(samples, scores), "average": average}

    def choice(self, row: dict[str, object], place: str) -> Choice:
        """lmms-eval's rows have their options in the question alone: "Options: A: red, B: blue, C: green, D: white"."""
        if not {"A", "options", "choices"} & row.keys():
            parts = WITHIN.split(str(row.get("question", "")).rpartition("Options:")[2])
            row = {**row, **dict(zip(parts[1::2], (text.strip() for text in parts[2::2]), strict=True)), "within": True}
        return super().choice(row, place)
