"""AI2D: questions about diagrams of school books (Kembhavi et al., ECCV 2016, arXiv 1603.07396).

test covers the labels of a diagram with letters; test_no_mask shows them, and is another benchmark with other numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from vlbench.task import task

from . import _choice
from ._asked import directions
from ._choice_table import ChoiceTable, Rule


@task("ai2d", title="AI2D, diagrams", capability="answer", metric="accuracy", version=1, chance=25.0)
class AI2D(ChoiceTable):
    """`root` holds AI2D_TEST.tsv and AI2D_TEST_NO_MASK.tsv (VLMEvalKit's), or lmms-eval's data/test-*.parquet."""

    tables: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "test": ("AI2D_TEST.tsv", "data/test-*.parquet"),
        "test_no_mask": ("AI2D_TEST_NO_MASK.tsv",),
    }  # fmt: skip
    splits: ClassVar[tuple[str, ...]] = tuple(tables)
    rules: ClassVar[Mapping[str, Rule]] = {"lmms": _choice.ai2d_lmms, "vlmevalkit": _choice.vlmevalkit}
    metrics: ClassVar[Mapping[str, Literal["higher", "lower"]]] = directions("accuracy")
