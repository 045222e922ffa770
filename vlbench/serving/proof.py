"""The proof of an export: on real samples of the run, the runtime predicts what the model predicts."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..cell.cell import Cell
from ..errors import RunFailed
from ..evaluation.loop import Evaluator
from ..evaluation.predictions import Line, Predictions
from ..images.pipeline import ImageStore
from ..model import Model
from ..runtime import Part, Runtime, Serve, Served, Stage
from ..task import Sample
from .stages import Calls, noted, parts_of, served_by

SAMPLES = 64
BATCH = 16


@dataclass(frozen=True)
class Wanted:
    """What the model itself says of the samples, and the calls of its stages on the way."""

    samples: Sequence[Sample]
    lines: Sequence[Line]
    calls: Calls
    parts: Sequence[Part]


def chosen(samples: Sequence[Sample]) -> list[Sample]:
    """SAMPLES of them from the whole split, or all where there are fewer: its first ones may be of one class."""
    step = max(1, len(samples) // SAMPLES)
    return list(samples[::step][:SAMPLES])


def wanted(model: Model, cell: Cell) -> Wanted:
    """Predict with the model as it is. Raises RunFailed for samples that fail already here."""
    samples, stages = chosen(cell.samples), model.stages()
    with noted(model, stages) as calls:
        lines = _predicted(model, cell, samples)
    bad = [line for line in lines if line["status"] != "ok"]
    if bad:
        raise RunFailed(f"{len(bad)} samples fail before any export, the first ({bad[0]['id']}): {bad[0]['error']}")
    return Wanted(samples, lines, calls, parts_of(model, stages, calls))


def proved_by_itself(runtime: Runtime, served: Served, folder: Path, cell: Cell) -> dict[str, Any]:
    """The same of a runtime without stages."""
    samples = chosen(cell.samples)
    proof = runtime.proof(served, folder, samples, cell.task.capability)
    return {"samples": len(samples), "of": len(cell.samples), "equal": len(samples), **proof}


def proved(runtime: Runtime, model: Model, cell: Cell, request: Wanted, serve: Mapping[str, Serve]) -> dict[str, Any]:
    """What proof.json says. Raises RunFailed where the runtime says something else, with what differs, and where."""
    stages = {
        part.stage.name: _difference(model, part.stage, request, serve[part.stage.name]) for part in request.parts
    }
    for name, difference in stages.items():
        if not difference["relative"] <= runtime.tolerance:  # nan fails, too
            raise RunFailed(
                f"no proof: {runtime.title} computes other outputs of {name}: they differ by "
                f"{difference['largest']:.3g}, {difference['relative']:.3g} of the largest one, and "
                f"{runtime.tolerance:g} are allowed."
            )
    with served_by(model, request.parts, serve):
        lines = _predicted(model, cell, request.samples)
    other = [(mine, its) for mine, its in zip(request.lines, lines, strict=True) if not _same(mine, its)]
    if other:
        mine, its = other[0]
        what = f"{its['prediction']!r}" if its["status"] == "ok" else f"the error {its['error']}"
        raise RunFailed(
            f"no proof: {runtime.title} predicts something else on {len(other)} of {len(lines)} samples, first on "
            f"{mine['id']}: {str(what)[:200]} in the place of {str(mine['prediction'])[:200]!r}."
        )
    return {"samples": len(lines), "of": len(cell.samples), "equal": len(lines), "stages": stages}


def _same(one: Line, other: Line) -> bool:
    return other["status"] == "ok" and bool(one["prediction"] == other["prediction"])


def _difference(model: Model, stage: Stage, request: Wanted, serve: Serve) -> dict[str, Any]:
    """The largest difference of the stage's outputs over all its calls, and its part of the largest output."""
    largest, scale = 0.0, 0.0
    for tensors in request.calls[stage.name]:
        with torch.no_grad():
            mine = stage.compute(model, *tensors)
            its = serve(tensors).to(mine.device)
        if its.shape != mine.shape:
            raise RunFailed(f"no proof: {stage.name} has the shape {tuple(its.shape)} there, here {tuple(mine.shape)}.")
        if mine.numel():
            largest = _larger(largest, float((mine.double() - its.double()).abs().max()))
            scale = _larger(scale, float(mine.double().abs().max()))
    relative = largest / scale if scale else largest
    return {"calls": len(request.calls[stage.name]), "largest": largest, "scale": scale, "relative": relative}


def _larger(one: float, other: float) -> float:
    """The larger one; not a number where one of them is none."""
    return other if other != other or other > one else one


def _predicted(model: Model, cell: Cell, samples: Sequence[Sample]) -> list[Line]:
    """Lines of the evaluation loop itself, in float32."""
    store = ImageStore(model.card.image, model.views)
    with tempfile.TemporaryDirectory(prefix="vlbench-proof-") as name:
        evaluator = Evaluator(model, cell.task, store, settings=cell.settings, batch_size=BATCH)
        return evaluator.run(samples, Predictions(Path(name) / "predictions.jsonl"))
