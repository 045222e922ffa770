"""Some of a run's samples, predicted again with the model that it saved: forged or borrowed predictions are caught.

Which samples is decided by a digest of the run's own files: whoever forges a prediction does not know whether it will
be asked for before the file is finished, and every change of the file asks for others. COUNT samples miss a forgery of
a tenth of the split once in a thousand times, and one of a hundredth every other time: what is smaller than its
interval can be hidden. A task whose samples are predicted together (retrieval) is predicted again as a whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..capability import Capability, capability_of
from ..cell.cell import Cell
from ..disk.digests import file_digest
from ..disk.storage import digest
from ..errors import UserError
from ..evaluation.loop import Evaluator
from ..evaluation.predictions import Line, Predictions
from ..images.pipeline import ImageStore
from ..machine.device import computing_device, product
from ..model import Model
from ..task import Sample, Task

COUNT = 64
# Of the scores of one sample: a class map's counts move by a few pixels where sums are ordered otherwise.
CLOSE = 0.01
# Of all samples that are predicted again: on another machine, or in half precision, ties fall otherwise.
FLIPPED = 1 / 32


def verify_predictions(
    file: Path, cell: Cell, model: Model, lines: Sequence[Line], model_digest: str, made_with: Mapping[str, Any]
) -> None:
    """Raise UserError, naming the file and a sample, where `model` answers otherwise than `lines` say. lines: of the
    file, in the split's order. model_digest: of the saved model. made_with: the provenance of the run."""
    chosen = asked(cell, digest([cell.identity, file_digest(file), model_digest]))
    model.place(cell.spec.words.precision)
    evaluator = Evaluator(
        model, cell.task, ImageStore(model.card.image, model.views), settings=cell.settings,
        batch_size=cell.batch_size, precision=cell.spec.words.precision,
    )  # fmt: skip
    samples = [cell.samples[i] for i in chosen]
    with TemporaryDirectory(prefix="vlbench-submit-") as folder:
        predictions = Predictions(Path(folder) / "predictions.jsonl")
        again = evaluator.answered(samples, predictions)
    old = [lines[i] for i in chosen]
    other = [s.id for s, a, b in zip(samples, old, again, strict=True) if not alike(cell.task, s, a, b)]
    here = cell.spec.words.precision == "fp32" and made_with.get("device") == product(computing_device())
    if len(other) > (0 if here else int(FLIPPED * len(samples))):
        raise UserError(
            f"{file} is inconsistent (the saved model answers {len(other)} of {len(samples)} samples otherwise, the "
            f"first {other[0]}): delete the run's folder and run again."
        )


def asked(cell: Cell, challenge: str) -> list[int]:
    """Numbers of the samples to predict again, in the split's order."""
    samples = cell.samples
    if type(capability_of(cell.task.capability)).evaluate is not Capability.evaluate:
        return list(range(len(samples)))
    order = sorted(range(len(samples)), key=lambda i: hashlib.sha256(f"{challenge} {samples[i].id}".encode()).digest())
    return sorted(order[:COUNT])


def alike(task: Task, sample: Sample, old: Line, new: Line) -> bool:
    """Whether two lines of a sample say the same: the same prediction, or one that scores as the other does."""
    if new["status"] != "ok":
        return False
    if old["prediction"] == new["prediction"]:
        return True
    if type(task).scores is not Task.scores:
        return _near(old["prediction"], new["prediction"])
    ours, theirs = (np.asarray(task.score(sample, line["prediction"]), np.float64) for line in (new, old))
    return ours.shape == theirs.shape and bool(np.allclose(ours, theirs, rtol=CLOSE, atol=1e-6))


def _near(a: Any, b: Any) -> bool:
    """Predictions that differ by the rounding of their numbers alone."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_near(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_near, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return bool(np.isclose(a, b, rtol=1e-3, atol=1e-3))
    return bool(a == b)
