"""Committed results that contradict themselves or one another: what an edit by hand leaves behind."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable
from pathlib import Path

from ..disk.storage import canonical
from ..errors import UserError
from ..records.record import Record

SAME = 1e-6  # percent points between two tellings of one number


def refuse_contradictions(records: Collection[tuple[Path, Record]]) -> None:
    """Raise UserError naming the first file whose numbers do not fit one another, or those of its dense model."""
    dense = {board_of(r): r.interval.value for _, r in records if is_dense(r)}
    for path, record in records:
        if why := contradiction(record, dense.get(board_of(record))):
            raise UserError(f"{path} contradicts itself ({why}): restore it, or submit its run again.")


def contradiction(record: Record, dense: float | None) -> str:
    """What does not fit in a record; empty where all does. dense: the value of its dense model, where that is known."""
    value, versus = record.interval.value, record.vs_dense
    metric_value = record.metrics.get(record.metric)
    if metric_value is None or not _near(metric_value, value):
        return f"{record.metric} is {metric_value} among its metrics, {value} with its interval"
    if not record.interval.low - SAME <= value <= record.interval.high + SAME:
        return f"{record.metric} {value} is not within its interval"
    if versus is not None and not versus.low - SAME <= versus.delta <= versus.high + SAME:
        return f"the difference {versus.delta} to the dense model is not within its interval"
    if versus is not None and dense is not None and not _near(value - versus.delta, dense):
        return f"{record.metric} is {value}, {versus.delta} from the dense model, which has {dense}"
    return ""


def is_dense(record: Record) -> bool:
    """Whether it is of the model that the others of its board are compared with."""
    return record.vs_dense is None and not record.trained and not record.sparsity


def board_of(record: Record) -> Hashable:
    """What results share that are compared."""
    names = (record.suite, record.task, record.task_version, record.model, record.label)
    return (*names, record.split_digest, record.weights_digest, canonical(record.evaluation))


def _near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=0, abs_tol=SAME)
