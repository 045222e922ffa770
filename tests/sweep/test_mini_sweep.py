"""leaderboards/mini.sweep and the studies beside it are what the committed mini boards were made with."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from vlbench.cell.resolve import resolve
from vlbench.cell.spec import Spec
from vlbench.disk.storage import canonical
from vlbench.leaderboard.rows import load_results
from vlbench.records.record import Record
from vlbench.sweep.sweepfile import lines_of

BOARDS = Path(__file__).resolve().parents[2] / "leaderboards"
TASKS = ("nlvr2", "vqav2", "coco_caption", "coco_retrieval", "flickr30k_retrieval", "imagenet", "ade20k")


@cache
def words() -> list[dict[str, str]]:
    return [cell for line in lines_of([], BOARDS / "mini.sweep") for cell in line.cells()]


@cache
def study_words() -> list[dict[str, str]]:
    """The cells of the studies, whose rows stand on the mini boards too."""
    files = [path for path in sorted(BOARDS.glob("*.sweep")) if path.name != "mini.sweep"]
    return [cell for path in files for line in lines_of([], path) for cell in line.cells()]


@cache
def results() -> list[Record]:
    return load_results(BOARDS / "results" / "mini")


@cache
def specs(task: str) -> list[Spec]:
    """The file's cells for one task."""
    return [resolve(cell) for cell in words() if cell["task"] == task]


def asked(spec: Spec) -> str:
    """What makes a cell of its own: seeds of chains without chance are one."""
    chain = [(link.entry.name, link.options.model_dump(mode="json")) for link in spec.links]
    return canonical([chain, spec.words.seed if spec.uses_seed else None])


def is_asked_for(record: Record, spec: Spec) -> bool:
    """Model, chain, options and seed. Digests of weights and sources, and options that a method has had since, are left
    out: they change while one edits."""
    links = [(link.entry.name, link.options.model_dump(mode="json")) for link in spec.links]
    return (
        record.model == spec.model.name
        and record.seed == (spec.words.seed if spec.uses_seed else None)
        and record.evaluation["precision"] == spec.words.precision
        and [link.name for link in record.chain] == [name for name, _ in links]
        and all(link.options.items() <= options.items() for link, (_, options) in zip(record.chain, links, strict=True))
    )


def test_the_file_names_the_seven_tasks_and_no_suite() -> None:
    assert {cell["task"] for cell in words()} == set(TASKS)
    assert not any(key in cell for cell in words() for key in ("suite", "model", "split", "limit"))


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_the_same_rows(task: str) -> None:
    """One dense cell; 2 x 4 unstructured and 2:4 targets with 3 seeds where there is chance; uniform with and without
    finetuning, UPop and the control: counted by hand. Four tasks have the other one-shot pruners too: four at three
    targets and ECoFLaP's allocation at two; three have UPop's ladder: six rungs at two targets with three seeds."""
    more = (4 * 3 + 2) * 3 if task in ("nlvr2", "vqav2", "coco_retrieval", "imagenet") else 0
    more += 6 * 2 * 3 if task in ("nlvr2", "vqav2", "imagenet") else 0
    assert len({asked(spec) for spec in specs(task)}) == 1 + 4 + 4 * 3 + 2 + 2 * 3 + 2 * 3 + 3 + more


@pytest.mark.parametrize("task", TASKS)
def test_every_committed_result_is_a_cell_of_a_file(task: str) -> None:
    own = [record for record in results() if record.task == task]
    if not own:
        pytest.skip(f"no results of {task} are committed")
    asked_for = [*specs(task), *(resolve(cell) for cell in study_words() if cell["task"] == task)]
    assert [r.cell for r in own if not any(is_asked_for(r, spec) for spec in asked_for)] == []
