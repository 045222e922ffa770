"""A sweep at work: a plan is run by an executor, finished cells are skipped, the longest cells begin first.

words -> cells (planning.py) -> dense baselines -> the others, each as soon as its baseline is there
"""

from __future__ import annotations

import json as jsonlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..records.record import Record, read_record
from .executor import FAILED, Executor, Outcome, incomplete, log_file
from .planning import Planned
from .state import Runs, Times

if TYPE_CHECKING:
    from ..machine.ui import Screen


# Running -----------------------------------------------------------------------------------------------------------


@dataclass
class Sweep:
    """A planned sweep at work. outcomes: of the cells that have ended, in the order they did."""

    planned: Sequence[Planned]
    runs: Path
    screen: Screen
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    _queue: list[Planned] = field(default_factory=list)

    def run(self, start: Callable[[Callable[[], None]], Executor]) -> None:
        """Run what is not done. start: makes the executor, given what it calls when a cell begins. An interrupt stops
        the running cells, which resume, and is passed on."""
        finished = Runs.read(self.runs)
        self.outcomes.update(
            {plan.cell: outcome for plan in self.planned if (outcome := self._finished(plan, finished))}
        )
        if len(self.outcomes) == len(self.planned):
            return
        self._queue = self._longest_first(Times(finished))
        executor = start(lambda: self._progress(executor))
        try:
            executor.submit([plan.work for plan in self._at_start()])
            for outcome in executor.outcomes():
                self._ended(outcome)
                if ready := [plan.work for plan in self._after(outcome)]:
                    executor.submit(ready)
                self._progress(executor)
        finally:
            executor.close()

    def _longest_first(self, times: Times) -> list[Planned]:
        """After the baselines, for which others wait: a long cell that begins last leaves every other worker idle. Of
        cells like which none was ever run, those that train for more steps are taken for longer."""
        baselines = {plan.dense for plan in self.planned}

        def key(plan: Planned) -> tuple[bool, float, int]:
            return plan.cell not in baselines, -(times.seconds(plan.cell) or 0.0), -plan.steps

        return sorted(self.planned, key=key)

    @cached_property
    def _waiting(self) -> dict[str, list[Planned]]:
        """Baseline -> the cells that wait for it."""
        by_baseline: dict[str, list[Planned]] = defaultdict(list)
        for plan in self._queue:
            if plan.dense:
                by_baseline[plan.dense].append(plan)
        return by_baseline

    def _finished(self, plan: Planned, runs: Runs) -> Outcome | None:
        result = runs.results.get(plan.cell)
        if result is None:
            return None
        if result.complete:
            return Outcome(plan.cell, "done")
        flags = read_record(self.runs / plan.cell / "result.json").flags
        return Outcome(plan.cell, "failed", incomplete(self.runs, plan.cell, flags))

    def _at_start(self) -> Iterable[Planned]:
        """Cells that wait for no baseline."""
        for plan in self._queue:
            if plan.cell not in self.outcomes and (not plan.dense or plan.dense in self.outcomes):
                yield from self._unless_failed(plan)

    def _after(self, baseline: Outcome) -> Iterable[Planned]:
        """Cells that this one's end lets begin."""
        for plan in self._waiting.get(baseline.cell, ()):
            if plan.cell not in self.outcomes:
                yield from self._unless_failed(plan)

    def _unless_failed(self, plan: Planned) -> Iterable[Planned]:
        """What cannot begin because its baseline failed has ended too."""
        if plan.dense and self.outcomes[plan.dense].state != "done":
            self._ended(Outcome(plan.cell, "failed", f"its dense baseline {plan.dense} failed"))
        else:
            yield plan

    def _ended(self, outcome: Outcome) -> None:
        self.outcomes[outcome.cell] = outcome
        took = f" ({outcome.seconds:.0f} s)" if outcome.seconds else ""
        self.screen.say(f"{outcome.state:<7} {outcome.cell}{took}{': ' + outcome.reason if outcome.reason else ''}")

    def _progress(self, executor: Executor) -> None:
        failed = len(self.failed())
        notes = [f"{failed} failed"] * bool(failed) + executor.running()
        self.screen.progress("sweep", len(self.outcomes), len(self.planned), ", ".join(notes))

    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes.values() if outcome.state == "failed"]

    def left(self) -> list[Planned]:
        """Cells that have not ended: an interrupted sweep's."""
        return [plan for plan in self.planned if plan.cell not in self.outcomes]

    def records(self) -> list[Record]:
        """Of the cells that are done, as planned."""
        done = [plan.cell for plan in self.planned if (o := self.outcomes.get(plan.cell)) and o.state == "done"]
        return [read_record(self.runs / cell / "result.json") for cell in done]


# Telling -----------------------------------------------------------------------------------------------------------


def print_plan(planned: Sequence[Planned], runs: Path, *, json: bool) -> None:
    """Every cell and how far it is; nothing is run or written."""
    runs_read = Runs.read(runs)
    states = [runs_read.state(plan.cell) for plan in planned]
    if json:
        rows = [
            {"cell": plan.cell, "state": state, "baseline": plan.work.baseline, "words": dict(plan.work.words)}
            for plan, state in zip(planned, states, strict=True)
        ]
        print(jsonlib.dumps(rows, indent=1))
        return
    for plan, state in zip(planned, states, strict=True):
        note = "  (the dense baseline of other cells)" if plan.work.baseline else ""
        print(f"{state:<10}  {plan.cell}{note}")
    counts = {state: states.count(state) for state in dict.fromkeys(states)}
    print(f"{_cells(len(planned))}: {', '.join(f'{count} {state}' for state, count in counts.items())}")


def _cells(count: int) -> str:
    return f"{count} cell{'' if count == 1 else 's'}"


def print_summary(sweep: Sweep, *, json: bool) -> None:
    """The boards of what is done, and what is not."""
    records = {record.cell: record for record in sweep.records()}
    if json:
        rows = [_row(sweep, plan.cell, records.get(plan.cell)) for plan in sweep.planned]
        print(jsonlib.dumps({"cells": rows, "failed": len(sweep.failed()), "left": len(sweep.left())}, indent=1))
        return
    _print_boards(list(records.values()), sweep.runs)
    _print_ends(sweep)


def _row(sweep: Sweep, cell: str, record: Record | None) -> dict[str, Any]:
    outcome = sweep.outcomes.get(cell)
    event: dict[str, Any] = {"cell": cell, "state": outcome.state if outcome else "left"}
    if outcome and outcome.reason:
        event["reason"] = outcome.reason
    if outcome and outcome.state == "failed":
        event["log"] = str(log_file(sweep.runs, cell))
    if record is not None:
        event |= {"metric": record.metric, "value": record.interval.value, "sparsity": record.sparsity}
    return event


def _print_boards(records: Sequence[Record], runs: Path) -> None:
    """One board for each group of rows that may stand together."""
    from ..leaderboard.local import comparable, print_board

    shown: list[Record] = []
    for record in records:
        if not any(comparable(record, other) for other in shown):
            shown.append(record)
            print_board(record, runs)


def _print_ends(sweep: Sweep) -> None:
    """Counts, and of every failed cell why and where its log is. Not a table: names of cells are long."""
    failed, left, total = sweep.failed(), sweep.left(), len(sweep.planned)
    for outcome in failed:
        log = log_file(sweep.runs, outcome.cell)
        print(f"{FAILED}{outcome.cell}\n  {outcome.reason}" + (f"\n  log: {log}" if log.is_file() else ""))
    parts = [f"{total - len(failed) - len(left)} done"]
    parts += [f"{len(failed)} failed"] * bool(failed) + [f"{len(left)} left to do"] * bool(left)
    print(f"{_cells(total)}: {', '.join(parts)}")
