"""`vlbench time RUN --runtime onnx,openvino`: the stated sample, measured where the model is served."""

from __future__ import annotations

import json as jsonlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..cost.measured import keep, print_table
from ..cost.sample import infer, stated
from ..cost.timing import How, measure, resident_mb
from ..errors import UserError
from ..machine.ui import Screen
from ..plugins.table import table
from ..runtime import Part, Runtime, Serve, Served
from .export import finished, opened, refuse, runtime_named, written
from .stages import noted, parts_of, served_by


def time_served(folders: Sequence[Path], names: Sequence[str], how: How, screen: Screen, *, json: bool) -> None:
    """Measure each run in each runtime, keep it in its cost.json and print a table, whose ratios are to the first."""
    if how.device.type != "cpu" or how.precision != "fp32" or how.compile:
        raise UserError("--runtime measures float32 on the CPU alone: leave --device, --precision and --compile out.")
    runtimes = [(name, runtime_named(name)) for name in names]
    if alone := [name for name, runtime in runtimes if not runtime.staged]:
        raise UserError(f"{alone[0]} has no stages that the stated sample goes through: leave it out of --runtime.")
    entries = []
    for folder in folders:
        record = finished(folder)
        capability = str(table("tasks").get(record.task).facts["capability"])
        for name, runtime in runtimes:
            served = opened(folder, record)
            refuse(runtime, served)
            served = replace(served, parts=stated_parts(served, capability))
            entry = {**measured(runtime, served, capability, how, screen), "runtime": name}
            keep(folder / "cost.json", record, capability, entry)
            entries.append((record, entry))
        screen.say(f"wrote {folder / 'cost.json'}")
    if json:
        print(jsonlib.dumps([{"cell": record.cell, **entry} for record, entry in entries], indent=1))
    else:
        print_table(entries)


def stated_parts(served: Served, capability: str) -> list[Part]:
    """The stages that the stated sample goes through. Needs no data."""
    model, stages = served.model, served.model.stages()
    with noted(model, stages) as calls, torch.no_grad():
        infer(model, capability, stated(capability).make(model, 2, False))
    return parts_of(model, stages, calls)


def measured(runtime: Runtime, served: Served, capability: str, how: How, screen: Screen) -> dict[str, Any]:
    """An entry of cost.json: what `vlbench time` measures, and bytes and milliseconds of loading."""
    with tempfile.TemporaryDirectory(prefix="vlbench-time-") as name:
        folder = Path(name)
        screen.progress(f"{served.model.card.name} for {runtime.title}", 0, 1)
        written(runtime, served, folder)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        floor, start = resident_mb(), time.perf_counter()
        serve = runtime.open(served, folder, torch.get_num_threads())
        loaded = time.perf_counter() - start
        _first(serve, served.parts)
        grown = resident_mb()
        with served_by(served.model, served.parts, serve):
            entry = measure(served.model, capability, how, screen.progress)
    added = None if floor is None or grown is None else round(grown - floor, 1)
    return {
        **entry,
        "version": runtime.version(),
        "stages": [part.stage.name for part in served.parts],
        "bytes": size,
        "load_ms": round(1e3 * loaded, 2),
        "resident_mb": added,  # by how much the process grew when it opened the model and computed once
    }


def _first(serve: Mapping[str, Serve], parts: Sequence[Part]) -> None:
    for part in parts:
        serve[part.stage.name](part.example)
