"""The samples of a finished run: what it said, what the dense model said, and which of them to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ..cell.again import dense_cell
from ..disk import checksums
from ..evaluation.predictions import Line, read_predictions
from ..leaderboard.local import comparable
from ..records.record import Record, read_local
from ..task import Sample, Score, Task

MOST = 50  # samples of a page
LOST, GAINED = 30, 8  # of them at most: where the dense model is better, where it is worse

Kind = Literal["lost", "gained", "same", "alone"]


@dataclass(frozen=True)
class Shown:
    """One sample of the page. value, dense: of the primary metric for this sample alone, percent; dense: None where
    there is nothing to compare with."""

    sample: Sample
    line: Line
    value: float
    theirs: Line | None
    dense: float | None

    @property
    def kind(self) -> Kind:
        if self.dense is None:
            return "alone"
        return "lost" if self.value < self.dense else "gained" if self.value > self.dense else "same"


def all_samples(folder: Path, record: Record) -> tuple[Task, list[Shown]]:
    """Every evaluated sample of a run, with what the dense run beside it says. Raises UserError where the data are not
    there, or are others than those that were evaluated."""
    cell = dense_cell(folder, record)
    samples = cell.samples
    ids = [sample.id for sample in samples]
    checksums.check(folder, "predictions.jsonl")
    lines = read_predictions(folder / "predictions.jsonl", ids)
    other = _dense_run(folder, record) if record.vs_dense is not None else None
    theirs: Sequence[Line | None] = [None] * len(ids)
    if other is not None:
        checksums.check(other, "predictions.jsonl")
        theirs = read_predictions(other / "predictions.jsonl", ids)
    task = cell.task
    entries = []
    for sample, line, their in zip(samples, lines, theirs, strict=True):
        if line["status"] == "ok":
            dense = None if their is None else value_of(task, their["score"])
            entries.append(Shown(sample, line, value_of(task, line["score"]), their, dense))
    return task, entries


def _dense_run(folder: Path, record: Record) -> Path | None:
    """The finished dense run beside this one that it may be compared with."""
    for file in sorted(folder.parent.glob("*dense*/result.json")):
        other = read_local(file.parent)
        if other.method == "dense" and comparable(other, record):
            return file.parent
    return None


def value_of(task: Task, score: Score) -> float:
    """The primary metric of one sample alone, percent; of a corpus metric, what it would be on this sample."""
    numbers = np.atleast_1d(np.asarray(score, dtype=np.float64))
    value = float(task.corpus_metric(numbers[None])[0]) if task.corpus else 100 * float(numbers[0])
    return value if np.isfinite(value) else 0.0


def chosen(samples: Sequence[Shown]) -> list[Shown]:
    """At most MOST to look at: the greatest losses, the greatest gains, and of the rest one in so many."""
    lost = sorted((s for s in samples if s.kind == "lost"), key=lambda s: s.value - (s.dense or 0.0))[:LOST]
    gained = sorted((s for s in samples if s.kind == "gained"), key=lambda s: (s.dense or 0.0) - s.value)[:GAINED]
    rest = [s for s in samples if s.kind in ("same", "alone")]
    room = MOST - len(lost) - len(gained)
    every = max(1, -(-len(rest) // room))
    return [*lost, *gained, *rest[::every]]
