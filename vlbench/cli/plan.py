"""`vlbench run --plan`: the resolved cell, what is done, and how long the rest took before."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from statistics import median
from typing import Any

from ..cell.cell import Cell, open_cell
from ..cell.spec import Spec
from ..errors import UserError
from ..machine.ui import Screen
from ..records.record import Record, read_record


def print_plan(spec: Spec, runs: Path, screen: Screen, *, json: bool, on: str = "") -> None:
    """Print, and write nothing into `runs`. on: a device, whose memory and seconds are told too."""
    cell = open_cell(spec, screen.building, screen.digesting)
    planned = _plan(cell, runs)
    if on:
        from ..cost.needs import needs

        planned |= {**needs(cell, on), "disk": _disk(cell, runs)}
    if json:
        print(jsonlib.dumps(planned, indent=1))
        return
    width = max(map(len, planned))
    for key, value in planned.items():
        lines = [f"{name}={option}" for name, option in value.items()] if isinstance(value, dict) else [value]
        for number, line in enumerate(lines):
            print(f"{key if number == 0 else '':<{width}}  {line}")


def _plan(cell: Cell, runs: Path) -> dict[str, Any]:
    spec = cell.spec
    return {
        "cell": cell.id,
        "suite": spec.words.suite,
        "task": f"{spec.task.name}, split {cell.split}, {len(cell.samples)} samples",
        "model": f"{spec.model.name}, weights {cell.weights}",
        "method": f"{' -> '.join(k.entry.name for k in spec.links)}, recipe {spec.recipe}",
        "options": {f"{k.entry.name}.{n}": v for k in spec.links for n, v in k.facts.printed.items()},
        "evaluation": cell.evaluation,
        "state": _state(runs / cell.id),
        "dense baseline": _state(runs / cell.dense().id),
        "estimate": _estimate(cell, runs),
    }


def _state(folder: Path) -> str:
    if folder.is_symlink():
        return "refused: its folder is a link"
    if (folder / "result.json").is_file():
        return "done"
    if (folder / "model").is_dir():
        return "compressed, evaluation to do"
    return "started" if (folder / "cell.json").is_file() else "to do"


def _estimate(cell: Cell, runs: Path) -> str:
    """From the finished cells of this task, model, chain and number of samples on this machine."""
    if _state(runs / cell.id) == "done":
        return "nothing to do"
    records = _records(runs)
    seconds = _seconds(records, cell)
    dense = [] if cell.is_dense or _state(runs / cell.dense().id) == "done" else _seconds(records, cell.dense())
    if not seconds:
        return "unknown: no finished run of this method, task, model and size here"
    return f"about {median(seconds) + (median(dense) if dense else 0):.0f} s (from {len(seconds)} runs here)"


def _disk(cell: Cell, runs: Path) -> str:
    """Of predictions.jsonl, by the lines of finished cells of this task here."""
    files = [runs / r.cell / "predictions.jsonl" for r in _records(runs) if r.task == cell.spec.task.name and r.samples]
    lines = [file.stat().st_size / len(file.read_bytes().splitlines()) for file in files if file.is_file()]
    if not lines:
        return f"{len(cell.samples)} lines of predictions, of unknown length: no finished run of this task here"
    return f"predictions {median(lines) * len(cell.samples) / 1e6:.3g} MB (from {len(lines)} runs here)"


def _records(runs: Path) -> list[Record]:
    """The readable results; a damaged one is no matter of an estimate."""
    records = []
    for file in sorted(runs.glob("*/result.json")):
        try:
            records.append(read_record(file))
        except UserError:
            continue
    return records


def _seconds(records: list[Record], cell: Cell) -> list[float]:
    wanted = (cell.spec.task.name, cell.spec.model.name, cell.spec.method, len(cell.samples))
    alike = [r for r in records if (r.task, r.model, r.method, r.samples) == wanted]
    return [float(r.provenance.get("seconds", 0)) for r in alike]
