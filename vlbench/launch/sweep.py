"""A sweep: the product of comma lists, planned whole, then run by an executor; finished cells are skipped.

words -> cells (every mistake told at once) -> dense baselines -> the others, each as soon as its baseline is there
"""

from __future__ import annotations

import json as jsonlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cell import SHARED, BuildProgress, Cell, open_cell
from ..errors import UserError
from ..lease import EXPIRES
from ..record import Record, read_record
from ..resolve import resolve
from ..spec import Spec
from .executor import Executor, Outcome, Work, incomplete, log_file
from .sweepfile import Line

if TYPE_CHECKING:
    from ..ui import Screen

SHOWN = 3  # cells that a message names
UNKNOWN = "is not known here"  # what resolve() says of a word that nothing in the cell takes
FAILED = "failed: "  # begins the last line of a log whose cell failed


@dataclass(frozen=True)
class Planned:
    """One cell of a sweep. dense: its baseline's identity, empty where it has none or is one itself."""

    work: Work
    dense: str = ""

    @property
    def cell(self) -> str:
        return self.work.cell


# Planning ----------------------------------------------------------------------------------------------------------


def plan(lines: Sequence[Line], progress: BuildProgress | None = None) -> list[Planned]:
    """The distinct cells of all lines, and the dense baselines they need, baselines first. Raises one UserError with
    everything that is wrong with any of them."""
    opener = _Opener(progress)
    opened = [opener.open(spec, words) for words, spec in _resolved(lines)]
    opener.complain()
    found: dict[str, Planned] = {}
    for cell, words in filter(None, opened):
        dense = "" if cell.is_dense or not cell.task.labelled(cell.split) else cell.dense().id
        found.setdefault(cell.id, Planned(Work(cell.id, words), dense))
        if dense:
            found.setdefault(dense, Planned(Work(dense, words, baseline=True)))
    needed = {one.dense for one in found.values()}
    return sorted(found.values(), key=lambda one: one.cell not in needed)


def _resolved(lines: Sequence[Line]) -> list[tuple[dict[str, str], Spec]]:
    """Every cell's words and what they mean."""
    found: list[tuple[dict[str, str], Spec]] = []
    errors: list[str] = []
    for line in lines:
        wrong: dict[str, list[dict[str, str]]] = defaultdict(list)
        cells = line.cells()
        for words in cells:
            try:
                found.append((words, resolve(words)))
            except UserError as error:
                for sentence in str(error).splitlines():
                    wrong[sentence].append(words)
        errors += _complaints(line, cells, wrong)
    if errors:
        raise UserError("\n".join(dict.fromkeys(errors)))
    return found


def _complaints(line: Line, cells: Sequence[dict[str, str]], wrong: dict[str, list[dict[str, str]]]) -> list[str]:
    """A sentence for each mistake of a line, with the cells it is in where these are not all."""
    told = []
    for sentence, bad in wrong.items():
        where = "" if len(bad) == len(cells) else f" ({_some([_varying(line, words) for words in bad])})"
        told.append(f"{line.place + ': ' if line.place else ''}{sentence}{where}{_hint(sentence, cells, bad)}")
    return told


def _hint(sentence: str, cells: Sequence[dict[str, str]], bad: Sequence[dict[str, str]]) -> str:
    """What to do about a word that only some methods (tasks, models) of the line know."""
    if UNKNOWN not in sentence:
        return ""
    good = [words for words in cells if words not in bad]
    for key in ("method", "task", "model"):
        values = list(dict.fromkeys(words.get(key, "") for words in bad))
        if good and all(values) and not {words.get(key) for words in good} & set(values):
            return (
                f" Every word of a line goes to every cell of it: put {key}={','.join(values)} on a line of its own "
                "(vlbench sweep --file PATH)."
            )
    return ""


def _varying(line: Line, words: dict[str, str]) -> str:
    """The words that tell a cell from the others of its line."""
    return " ".join(f"{key}={value}" for key, value in words.items() if "," in line.words[key])


def _some(items: Sequence[str]) -> str:
    more = f"; and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return "; ".join(items[:SHOWN]) + more


class _Opener:
    """Opens cells. Data and weights that several of them share are looked up, and their digests taken, once."""

    def __init__(self, progress: BuildProgress | None) -> None:
        self.progress = progress
        self.first: dict[tuple[Any, ...], Cell] = {}
        self.errors: dict[str, list[str]] = defaultdict(list)

    def open(self, spec: Spec, words: dict[str, str]) -> tuple[Cell, dict[str, str]] | None:
        """The cell with its words, or None after noting why there is none."""
        try:
            cell = self._open(spec)
            _ = cell.id  # reads what the identity is made of
        except UserError as error:
            self.errors[str(error)].append(" ".join(f"{k}={v}" for k, v in words.items()))
            return None
        return cell, words

    def complain(self) -> None:
        if self.errors:
            told = [f"{message}\n(needed by {_some(cells)})" for message, cells in self.errors.items()]
            raise UserError("\n".join(told))

    def _open(self, spec: Spec) -> Cell:
        words = spec.words
        key = (
            *(words.suite, spec.task.name, repr(spec.task_options), spec.split, words.limit),
            *(spec.model.name, words.checkpoint, spec.uses_seed),
        )
        if key not in self.first:
            self.first[key] = open_cell(spec, self.progress)
            return self.first[key]
        first = self.first[key]
        cell = replace(first, spec=spec)
        vars(cell).update({name: vars(first)[name] for name in SHARED if name in vars(first)})
        return cell


# What is done ------------------------------------------------------------------------------------------------------


def state_of(runs: Path, cell: str) -> str:
    """done, incomplete, running, failed, started or to do, from the files of `runs` alone."""
    folder = runs / cell
    if (folder / "result.json").is_file():
        return "done" if read_record(folder / "result.json").complete else "incomplete"
    if _held(folder / "lease.json"):
        return "running"
    if _reason(log_file(runs, cell)):
        return "failed"
    return "started" if (folder / "cell.json").is_file() else "to do"


def _held(lease: Path) -> bool:
    """Whether somebody works on the cell: the lease shows a sign of life (at once after a kill, one too many)."""
    try:
        return time.time() - lease.stat().st_mtime < EXPIRES
    except OSError:
        return False


def _reason(log: Path) -> str:
    """Why the cell's last attempt failed; empty where it did not, or was stopped."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return lines[-1].removeprefix(FAILED) if lines and lines[-1].startswith(FAILED) else ""


# Running -----------------------------------------------------------------------------------------------------------


@dataclass
class Sweep:
    """A planned sweep at work. outcomes: of the cells that have ended, in the order they did."""

    planned: Sequence[Planned]
    runs: Path
    screen: Screen
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def run(self, start: Callable[[Callable[[], None]], Executor]) -> None:
        """Run what is not done. start: makes the executor, given what it calls when a cell begins. An interrupt stops
        the running cells, which resume, and is passed on."""
        self.outcomes.update({one.cell: outcome for one in self.planned if (outcome := self._finished(one))})
        if len(self.outcomes) == len(self.planned):
            return
        executor = start(lambda: self._progress(executor))
        try:
            executor.submit(one.work for one in self._ready())
            for outcome in executor.outcomes():
                self._ended(outcome)
                executor.submit(one.work for one in self._ready(after=outcome.cell))
                self._progress(executor)
        finally:
            executor.close()

    def _finished(self, one: Planned) -> Outcome | None:
        file = self.runs / one.cell / "result.json"
        if not file.is_file():
            return None
        record = read_record(file)
        if record.complete:
            return Outcome(one.cell, "done")
        return Outcome(one.cell, "failed", incomplete(self.runs, one.cell, record.flags))

    def _ready(self, after: str | None = None) -> Iterable[Planned]:
        """Cells that can begin: at the start, and once the baseline `after` has ended. What cannot begin because its
        baseline failed has ended too."""
        for one in self.planned:
            if one.cell in self.outcomes or (after is not None and one.dense != after):
                continue
            if not one.dense:
                yield one
            elif (dense := self.outcomes.get(one.dense)) is not None:
                if dense.state == "done":
                    yield one
                else:
                    self._ended(Outcome(one.cell, "failed", f"its dense baseline {one.dense} failed"))

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
        return [one for one in self.planned if one.cell not in self.outcomes]

    def records(self) -> list[Record]:
        """Of the cells that are done, as planned."""
        done = [one.cell for one in self.planned if (o := self.outcomes.get(one.cell)) and o.state == "done"]
        return [read_record(self.runs / cell / "result.json") for cell in done]


# Telling -----------------------------------------------------------------------------------------------------------


def print_plan(planned: Sequence[Planned], runs: Path, *, json: bool) -> None:
    """Every cell and how far it is; nothing is run or written."""
    states = [state_of(runs, one.cell) for one in planned]
    if json:
        rows = [
            {"cell": one.cell, "state": state, "baseline": one.work.baseline, "words": dict(one.work.words)}
            for one, state in zip(planned, states, strict=True)
        ]
        print(jsonlib.dumps(rows, indent=1))
        return
    for one, state in zip(planned, states, strict=True):
        note = "  (the dense baseline of other cells)" if one.work.baseline else ""
        print(f"{state:<10}  {one.cell}{note}")
    counts = {state: states.count(state) for state in dict.fromkeys(states)}
    print(f"{_cells(len(planned))}: {', '.join(f'{count} {state}' for state, count in counts.items())}")


def _cells(count: int) -> str:
    return f"{count} cell{'' if count == 1 else 's'}"


def print_summary(sweep: Sweep, *, json: bool) -> None:
    """The boards of what is done, and what is not."""
    records = {record.cell: record for record in sweep.records()}
    if json:
        rows = [_row(sweep, one.cell, records.get(one.cell)) for one in sweep.planned]
        print(jsonlib.dumps({"cells": rows, "failed": len(sweep.failed()), "left": len(sweep.left())}, indent=1))
        return
    _print_boards(list(records.values()), sweep.runs)
    _print_ends(sweep)


def _row(sweep: Sweep, cell: str, record: Record | None) -> dict[str, Any]:
    outcome = sweep.outcomes.get(cell)
    told: dict[str, Any] = {"cell": cell, "state": outcome.state if outcome else "left"}
    if outcome and outcome.reason:
        told["reason"] = outcome.reason
    if outcome and outcome.state == "failed":
        told["log"] = str(log_file(sweep.runs, cell))
    if record is not None:
        told |= {"metric": record.metric, "value": record.interval.value, "sparsity": record.sparsity}
    return told


def _print_boards(records: Sequence[Record], runs: Path) -> None:
    """One board for each group of rows that may stand together."""
    from ..board import comparable, print_board

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
