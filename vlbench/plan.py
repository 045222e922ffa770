"""`vlbench run --plan`: the resolved cell, what is done, and how long the rest took before."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Any

from .cell import Cell, open_cell
from .errors import UserError
from .record import read_record
from .spec import Spec


def print_plan(spec: Spec, runs: Path, *, json: bool) -> None:
    """Print and write nothing."""
    cell = open_cell(spec)
    told = _plan(cell, runs)
    if json:
        print(jsonlib.dumps(told, indent=1))
        return
    for key, value in told.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for name, option in value.items():
                print(f"  {name}={option}")
        else:
            print(f"{key}: {value}")


def _plan(cell: Cell, runs: Path) -> dict[str, Any]:
    spec = cell.spec
    return {
        "cell": cell.id,
        "suite": spec.words.suite,
        "task": f"{spec.task.name}, split {cell.split}, {len(cell.samples)} samples",
        "model": f"{spec.model.name}, weights {cell.weights}",
        "method": f"{' -> '.join(k.entry.name for k in spec.links)}, recipe {spec.recipe}",
        "options": {f"{k.entry.name}.{n}": v for k in spec.links for n, v in k.options.model_dump().items()},
        "evaluation": cell.evaluation,
        "state": _state(runs / cell.id),
        "dense baseline": _state(runs / cell.dense().id),
        "estimate": _estimate(cell, runs),
    }


def _state(folder: Path) -> str:
    if (folder / "result.json").is_file():
        return "done"
    if (folder / "model").is_dir():
        return "compressed, evaluation to do"
    return "started" if (folder / "cell.json").is_file() else "to do"


def _estimate(cell: Cell, runs: Path) -> str:
    """Median seconds of finished cells of this task, model and chain on this machine."""
    seconds = []
    for file in sorted(runs.glob("*/result.json")):
        try:
            record = read_record(file)
        except UserError:
            continue
        if (record.task, record.model, record.method) == (cell.spec.task.name, cell.spec.model.name, cell.spec.method):
            seconds.append(float(record.provenance.get("seconds", 0)))
    if not seconds:
        return "unknown: no finished run of this method, task and model here"
    return f"about {sorted(seconds)[len(seconds) // 2]:.0f} s (median of {len(seconds)} runs here)"
