"""A finished run's cell, opened again from the words that it was given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..disk.storage import read_json
from ..errors import UserError
from ..records.record import Record
from .cell import Cell, open_cell
from .resolve import OF_THE_CHAIN, resolve
from .spec import Spec

OF_THE_COMMAND = ("precision", "batch_size")  # of a record's evaluation: the rest are the task's options
# Words whose value may be a file or folder, without their type saying so: a model or a task may be meant as well.
PERHAPS_FILES = ("checkpoint", "calibration", "calibration_images")


def described(cell: Cell) -> dict[str, Any]:
    """What cell.json says: the cell, its words, its identity. The words stay on this machine."""
    words = cell.spec.words.model_dump()
    return {"cell": cell.id, "words": words, "given": _from_anywhere(cell.spec), "identity": cell.identity}


def _from_anywhere(spec: Spec) -> dict[str, str]:
    """The given words, with the paths in them as they are found from every folder."""
    options = (spec.task_options, *(link.options for link in spec.links))
    given = {}
    for key, value in spec.given.items():
        name = key.rpartition(".")[2]
        path = Path(value).expanduser()
        is_path = any(isinstance(getattr(one, name, None), Path) for one in options)
        given[key] = str(path.absolute()) if is_path or (name in PERHAPS_FILES and path.exists()) else value
    return given


def given_words(folder: Path) -> dict[str, str]:
    """The words that the run in `folder` was given; empty for a run of an older vlbench, which did not note them."""
    content = read_json(folder / "cell.json")
    given = content.get("given", {}) if isinstance(content, dict) else {}
    if not isinstance(given, dict) or not all(isinstance(v, str) for v in given.values()):
        raise UserError(f"{folder / 'cell.json'} is damaged (its words are none): delete the folder and run again.")
    return given


def open_again(folder: Path, record: Record) -> Cell | None:
    """The run's own cell; None where an older vlbench did not note its words. Raises UserError where the data or
    weights are not there, and where the words give another cell now."""
    given = given_words(folder)
    if not given:
        return None
    cell = open_cell(resolve(given))
    if cell.id != record.cell:
        old, new = record.identity, cell.identity
        wrong = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
        raise UserError(
            f"{folder / 'result.json'} is no result of this installation (its words give {cell.id} here, with another "
            f"version of vlbench, or of its {', '.join(wrong) or 'name'}): run the cell again here."
        )
    return cell


def dense_cell(folder: Path, record: Record) -> Cell:
    """The cell of the same data and model without a method. Raises UserError where the data are not there, or are
    others than those that were evaluated."""
    given = given_words(folder)
    cell = open_cell(resolve(given)).dense() if given else open_cell(_from_record(folder, record))
    if cell.split_digest != record.split_digest:
        raise UserError(f"the data of {record.task} are not those that {folder.name} was evaluated on.")
    return cell


def _from_record(folder: Path, record: Record) -> Spec:
    """The dense cell of a run that did not note its words: what its files were is not known."""
    words: Mapping[str, Any] = read_json(folder / "cell.json")["words"]
    kept = {k: str(v) for k, v in words.items() if v and k not in (*OF_THE_CHAIN, "model")}
    spec = resolve({**kept, "method": "dense", "model": record.model})
    settings = {k: v for k, v in record.evaluation.items() if k not in OF_THE_COMMAND}
    return replace(
        spec, task_options=type(spec.task_options).model_validate({**spec.task_options.model_dump(), **settings})
    )
