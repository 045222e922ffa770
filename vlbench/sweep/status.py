"""`vlbench status`: what is done, running, failed and to do, and about how long the rest takes."""

from __future__ import annotations

import json as jsonlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..disk import checksums, lease
from .executor import log_file
from .state import Runs, Times

LOOKED_INTO = 1000  # finished cells up to which the digests of all their files are compared: 4 MB each are read


@dataclass(frozen=True)
class Row:
    """One cell. who, seconds: of a running one, who works on it and for how long; reason, log: of a failed one, and the
    log of a running one. left: seconds that it may still take; None where nothing like it was ever run."""

    cell: str
    state: str
    left: float | None = None
    who: str = ""
    seconds: float | None = None
    reason: str = ""
    log: str = ""


def rows_of(cells: Sequence[str] | None, folder: Path) -> list[Row]:
    """Of the cells that are named, or of all in the folder."""
    runs = Runs.read(folder, telling=True)
    if len(runs.results) <= LOOKED_INTO:
        runs.damaged.update({cell: why for cell in runs.results if (why := checksums.wrong(folder / cell))})
    times = Times(runs)
    return [_row(cell, runs, times) for cell in (runs.cells() if cells is None else cells)]


def _row(cell: str, runs: Runs, times: Times) -> Row:
    state, log = runs.state(cell), log_file(runs.folder, cell)
    if state == "done":
        return Row(cell, state, 0.0)
    if state == "damaged":
        return Row(cell, state, times.seconds(cell), reason=runs.damaged[cell])
    log_path = str(log) if cell in runs.logs else ""
    if state == "incomplete":
        return Row(cell, state, 0.0, reason=f"{runs.folder / cell / 'predictions.jsonl'} names what failed")
    estimate = times.seconds(cell)
    if state == "failed":
        return Row(cell, state, estimate, reason=runs.reason(cell), log=log_path)
    holder = lease.held(runs.folder / cell) if state == "running" else None
    if holder is None:
        return Row(cell, state if state != "running" else "started", estimate)
    who = f"process {holder.pid} on {holder.host}"
    spent = max(0.0, time.time() - holder.since) if holder.since is not None else None
    left = None if estimate is None else max(0.0, estimate - (spent or 0.0))
    return Row(cell, state, left, who, spent, log=log_path)


def print_status(cells: Sequence[str] | None, folder: Path, *, json: bool) -> None:
    rows = rows_of(cells, folder)
    counts = Counter(row.state for row in rows)
    if json:
        json_rows = [{k: v for k, v in asdict(row).items() if v not in ("", None)} for row in rows]
        print(jsonlib.dumps({"cells": json_rows, "counts": counts, **_time_left(rows)}, indent=1))
        return
    for row in rows:
        if row.state != "done":  # of thousands of cells, these are looked for
            print("\n  ".join([f"{row.state:<10}  {row.cell}", *_notes(row)]))
    cells_ = f"{len(rows)} cell{'' if len(rows) == 1 else 's'}"
    print(f"{cells_}: {', '.join(f'{count} {state}' for state, count in counts.items()) or 'nothing here'}")
    if line := _sentence(rows):
        print(line)


def _notes(row: Row) -> list[str]:
    notes = []
    if row.who:
        since = f" for {duration(row.seconds)}" if row.seconds is not None else ""
        notes.append(f"{row.who}{since}" + (f", about {duration(row.left)} left" if row.left else ""))
    if row.reason:
        notes.append(row.reason)
    if row.log:
        notes.append(f"log: {row.log}")
    return notes


def _open(rows: Sequence[Row]) -> list[Row]:
    """Cells that the same sweep would run, or runs now; an incomplete or damaged one waits for a person."""
    return [row for row in rows if row.state not in ("done", "incomplete", "damaged")]


def _time_left(rows: Sequence[Row]) -> dict[str, float | int]:
    """Seconds of work, cells at a time (those that run now), and cells of which nothing is known."""
    rest = _open(rows)
    work = sum(row.left or 0.0 for row in rest)
    wide = max(1, sum(row.state == "running" for row in rest))
    longest = max((row.left or 0.0 for row in rest), default=0.0)
    left = max(work / wide, longest)  # no cell is divided
    return {"left_seconds": round(left, 1), "at_a_time": wide, "unknown": sum(row.left is None for row in rest)}


def _sentence(rows: Sequence[Row]) -> str:
    if not _open(rows):
        return ""
    time_left = _time_left(rows)
    unknown = f", and {time_left['unknown']} of which nothing like them was ever run" if time_left["unknown"] else ""
    return f"about {duration(float(time_left['left_seconds']))} left, {time_left['at_a_time']} at a time{unknown}"


def duration(seconds: float) -> str:
    """40 s, 5 min, 3.5 h, 2.1 days."""
    for unit, size in (("days", 86400.0), ("h", 3600.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
