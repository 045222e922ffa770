"""SEED-Bench, the 14,233 questions about single images (Li et al., CVPR 2024, arXiv 2307.16125)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from vlbench.task import task

from . import _choice
from ._asked import directions
from ._choice_table import ChoiceTable, Rule


@task("seedbench", title="SEED-Bench, images", capability="answer", metric="accuracy", version=1, chance=25.0)
class SeedBench(ChoiceTable):
    """`root` holds SEEDBench_IMG.tsv (VLMEvalKit's)."""

    tables: ClassVar[Mapping[str, tuple[str, ...]]] = {"test": ("SEEDBench_IMG.tsv",)}
    splits: ClassVar[tuple[str, ...]] = ("test",)
    rules: ClassVar[Mapping[str, Rule]] = {"lmms": _choice.first_character, "vlmevalkit": _choice.vlmevalkit}
    kinds: ClassVar[tuple[str, ...]] = (
        "Scene Understanding", "Instance Identity", "Instance Attributes", "Instance Location", "Instances Counting",
        "Spatial Relation", "Instance Interaction", "Visual Reasoning", "Text Understanding",
    )  # fmt: skip
    metrics: ClassVar[Mapping[str, Literal["higher", "lower"]]] = directions("accuracy", kinds)
