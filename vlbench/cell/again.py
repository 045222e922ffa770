"""The data of a finished run, opened again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..disk.storage import read_json
from ..errors import UserError
from ..records.record import Record
from .cell import Cell, open_cell
from .resolve import resolve

OF_THE_COMMAND = ("precision", "batch_size")  # of a record's evaluation: the rest are the task's options


def dense_cell(folder: Path, record: Record) -> Cell:
    """The cell of the same data and model without a method. Raises UserError where the data are not there, or are
    others than those that were evaluated."""
    words: Mapping[str, Any] = read_json(folder / "cell.json")["words"]
    kept = {k: str(v) for k, v in words.items() if v and k not in ("method", "recipe", "model")}
    spec = resolve({**kept, "method": "dense", "model": record.model})
    settings = {k: v for k, v in record.evaluation.items() if k not in OF_THE_COMMAND}
    options = type(spec.task_options).model_validate({**spec.task_options.model_dump(), **settings})
    cell = open_cell(replace(spec, task_options=options))
    if cell.split_digest != record.split_digest:
        raise UserError(f"the data of {record.task} are not those that {folder.name} was evaluated on.")
    return cell
