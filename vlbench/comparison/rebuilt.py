"""Where a record comes from, rebuilt on this machine: the task on its data, and the dense cell of its board."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..records.record import Record, unpack_clusters, unpack_scores

if TYPE_CHECKING:
    from ..cell.cell import Cell
    from ..cell.spec import Spec


def clusters_of(record: Record) -> list[str]:
    """The cluster of each sample, "" for one of its own. In a record of schema 1, which lacks them, they are those of
    the task's samples: the data have to be here. Raises UserError where they are not, or are others."""
    count = len(unpack_scores(record.scores))
    if record.sample_clusters:
        return unpack_clusters(record.sample_clusters)
    if record.clusters == count:
        return [""] * count
    from ..cell.cell import Cell
    from ..cell.roots import open_task

    try:
        spec = _spec(record)
        cell = Cell(spec, open_task(spec), spec.split, Path())
    except UserError as error:
        raise UserError(
            f"{record.cell} is of schema 1, which has no clusters, and its samples cannot be read here ({error})"
        ) from None
    if cell.split_digest != record.split_digest or len(cell.samples) != record.samples:
        raise UserError(f"{record.cell} was measured on other samples than those of {cell.task.root}: run it again.")
    return [sample.cluster for sample in cell.samples]


def dense_cell(record: Record) -> Cell:
    """The dense cell that the record's row is compared with, on the data and weights that are here."""
    from ..cell.cell import open_cell

    return open_cell(_spec(record))


def _spec(record: Record) -> Spec:
    from pydantic import ValidationError

    from ..cell.resolve import resolve

    words: dict[str, str] = {name: getattr(record, name) for name in ("suite", "task", "model", "split")}
    for name in ("precision", "batch_size"):
        words[name] = str(record.evaluation[name])
    spec = resolve({**words, "method": "dense"})
    options = spec.task_class.Options
    recorded = {k: v for k, v in record.evaluation.items() if k in options.model_fields}
    try:
        return replace(spec, task_options=options.model_validate(recorded))
    except ValidationError as error:
        raise UserError(f"{record.cell} has options that task={record.task} no longer takes: {error}") from None
