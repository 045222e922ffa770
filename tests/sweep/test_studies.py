"""The committed studies: every line says something that can be run, and asks for what the study is about."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.minis import opened
from vlbench.cell.resolve import resolve
from vlbench.cell.spec import Spec
from vlbench.pruning.modality import tower_ratios
from vlbench.sweep.sweepfile import lines_of

BOARDS = Path(__file__).resolve().parents[2] / "leaderboards"


@cache
def specs(study: str) -> list[Spec]:
    """One a configuration: those of further seeds are left out."""
    cells = [cell for line in lines_of([], BOARDS / f"{study}.sweep") for cell in line.cells()]
    return [resolve(cell) for cell in cells if cell.get("seed", "0") == "0"]


@cache
def structure() -> Any:
    return opened("blip-vqa-mini").structure()


@pytest.mark.parametrize("study", ["distribution", "restoration"])
def test_every_pruner_can_do_what_is_asked(study: str) -> None:
    for spec in specs(study):
        first = spec.links[0]
        first.method(first.options).check(structure())


def test_the_grid_is_iso_ratio_and_iso_parameter() -> None:
    sizes, found = structure().tower_sizes(), Counter[tuple[str, float]]()
    for spec in specs("distribution"):
        options: Any = spec.links[0].options
        if spec.method == "dense" or options.n_m is not None:
            continue
        ratios = tower_ratios(structure(), options)
        assert ratios["question"] == pytest.approx(ratios["answer"])
        found["sum", round(ratios["vision"] + ratios["question"], 6)] += 1
        found["share", round(sum(ratios[name] * size for name, size in sizes.items()) / structure().size, 6)] += 1
    # Five points with the sum 1.0 (the even one is sparsity=0.5), seven with 1.2, six and six of one size.
    assert (found["sum", 1.0], found["sum", 1.2]) == (5, 7)
    assert (found["share", 0.5], found["share", 0.6]) == (6, 6)


def test_the_blind_baseline_is_there() -> None:
    assert [s.task_options.blind for s in specs("distribution") if s.method == "dense"] == [False, True]


def test_restorers_meet_after_the_same_pruners_for_as_many_steps() -> None:
    found = Counter[tuple[str, ...]]()
    for spec in specs("restoration"):
        first, *rest = spec.links
        found[tuple(link.entry.name for link in spec.links)] += 1
        if first.entry.name != "dense":
            alone = next(s for s in specs("restoration") if s.method == first.entry.name and s.target == spec.target)
            assert alone.links[0].options == first.options
        for link in rest:
            assert (link.options.steps, link.options.batch_size, link.options.loss) == (300, 128, "task")
    pruners, restorers = ("magnitude", "wanda"), ("lora", "sparselora", "finetune", "norms")
    assert {found[pruner,] for pruner in pruners} == {5}
    assert {found[pruner, restorer] for pruner in pruners for restorer in restorers} == {5}
    assert (found["dense", "finetune"], found["dense", "lora"]) == (1, 1)
