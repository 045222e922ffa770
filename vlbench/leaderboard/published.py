"""Numbers that papers and repositories print (leaderboards/published): shown beside a board, never mixed into it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from ..errors import UserError
from ..plugins.workspace import boards_folder

FILES = ("upop.csv", "peers.csv", "sparselora.csv")  # a number that several print is taken from the first
HEAT_MAP = "upop_nlvr_retained.csv"
DENSE = "dense"


@dataclass(frozen=True)
class Published:
    """One printed number; the fields are the columns, in order. value: None where the training did not converge.

    params: parameters, macs: MACs of one sample, as printed in the same line; None where it does not say.
    """

    source: str
    table: str
    task: str
    model: str
    dataset: str
    split: str
    method: str
    pattern: str
    target: str
    restoration: str
    metric: str
    value: float | None
    params: int | None
    macs: int | None
    protocol: str
    note: str


@dataclass(frozen=True)
class Point:
    """A published result in a picture. dense: the dense model of the same table, None where it prints none."""

    row: Published
    dense: Published | None


@dataclass(frozen=True)
class RetainedUnits:
    """One field of the published heat map. row: name of the site without its layer; layer: from 0; retained:
    fraction of its units that are kept."""

    source: str
    task: str
    model: str
    method: str
    target: str
    component: str
    row: str
    layer: int
    retained: float


def load_published(folder: Path | None = None) -> tuple[Published, ...]:
    """All numbers of a folder of such files, by default of the ones that ship here. Raises UserError naming a damaged
    line."""
    return tuple(_number(line, where) for name in FILES for line, where in _lines(_folder(folder) / name))


def load_heat_map(folder: Path | None = None) -> tuple[RetainedUnits, ...]:
    """The published heat map. Raises UserError naming a damaged line."""
    numbers = []
    for line, where in _lines(_folder(folder) / HEAT_MAP):
        try:
            layer, retained = int(line.pop("layer")) - 1, float(line.pop("retained_percent")) / 100
            numbers.append(RetainedUnits(**line, layer=layer, retained=retained))
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"{where} is no line of a heat map ({error}): restore the file.") from None
    return tuple(numbers)


def points(numbers: Iterable[Published], task: str, metric: str) -> list[Point]:
    """The results of one task and metric that have a value. Of one model, method, target and restoration the first
    counts: other splits, and other sources that quote it, are left out."""
    chosen: dict[tuple[str, str, str, str], Point] = {}
    rows = [n for n in numbers if n.task == task and n.metric == metric and n.value is not None]
    for row in rows:
        chosen.setdefault((row.model, row.method, row.target, row.restoration), Point(row, _dense(row, rows)))
    return list(chosen.values())


def _dense(row: Published, rows: Sequence[Published]) -> Published | None:
    """The dense model of a row: of the same table, model and split, and counted alike."""

    def place(number: Published) -> tuple[str, ...]:
        return (number.source, number.table, number.model, number.split)

    return next((number for number in rows if number.method == DENSE and place(number) == place(row)), None)


def _number(line: dict[str, str], where: str) -> Published:
    try:
        value, params, macs = (line.pop(name) for name in ("value", "params_m", "macs_g"))
        counts = {"params": _count(params, 1e6), "macs": _count(macs, 1e9)}
        return Published(**line, **counts, value=float(value) if value else None)  # type: ignore[arg-type]
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{where} is no published number ({error}): its columns are {', '.join(_columns())}.") from None


def _count(text: str, unit: float) -> int | None:
    return round(float(text) * unit) if text else None


def _columns() -> list[str]:
    return [{"params": "params_m", "macs": "macs_g"}.get(field.name, field.name) for field in fields(Published)]


def _lines(path: Path) -> list[tuple[dict[str, str], str]]:
    """(the line by column, where it stands). A file that is not there has none: a folder need not have all."""
    if not path.is_file():
        return []
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))
        return [(line, f"{path}, line {reader.line_num},") for line in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore it.") from None


def _folder(folder: Path | None) -> Path:
    if folder is not None:
        return folder
    return boards_folder() / "published"
