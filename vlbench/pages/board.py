"""The page of a suite: every board of it, to sort, filter and group, with pictures. Made from results alone."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import Any

from ..leaderboard.metric import higher, verdict
from ..leaderboard.points import Size, Spot, measured, published
from ..leaderboard.published import Published
from ..leaderboard.rows import Row, other_metrics
from ..leaderboard.scales import titled
from ..leaderboard.tables import (
    GENERATED,
    LEGEND,
    MINI_WARNING,
    count,
    csv_text,
    difference,
    estimate,
    facts,
    fixed,
    name,
    reduced,
    subject,
)
from ..records.flags import meanings
from ..records.record import Record
from .document import asset, data_block, escaped, filled, source_hash

Found = Sequence[tuple[Row, Sequence[Record]]]
Key = str | float | None
DIGITS = 6  # of a number to sort or draw by


@dataclass(frozen=True)
class _Column:
    """A column. key: what its cells are sorted by; spare: the window in which it leaves, and opening the row tells
    it ("medium" and narrower, or only "narrow"); best: sorted from the best when it is first chosen."""

    name: str
    label: str
    title: str
    cell: Callable[[Row], str]
    key: Callable[[Row], Key]
    text: bool = False
    spare: str = ""
    best: bool = False


SHOWN = (
    _Column("method", "method", "method, recipe and options that tell it from others", name, name, text=True),
    _Column("pattern", "pattern", "what is removed, and whether the chain trains", lambda r: _pattern(r),
            lambda r: _pattern(r), text=True, spare="medium"),
    _Column("sparsity", "sparsity", "fraction of the prunable set that is removed",
            lambda r: f"{fixed(100 * r.sparsity, 1)}%", lambda r: r.sparsity),
    _Column("parameters", "parameters", "parameters that are not zero, and the reduction of the whole model",
            lambda r: reduced(r.nonzero, r.model_reduction), lambda r: r.nonzero, spare="narrow"),
    _Column("macs", "MACs", "of one sample, and their reduction",
            lambda r: reduced(r.macs, r.macs_reduction), lambda r: r.macs, spare="narrow"),
    _Column("value", "", "the primary metric with its 95 % interval",
            lambda r: _unbroken(estimate(r.value, r.low, r.high, 2)), lambda r: r.value, best=True),
    _Column("delta", "vs dense", "paired difference to the dense model with its 95 % interval",
            lambda r: _unbroken(difference(r.delta, r.delta_low, r.delta_high, 2)), lambda r: r.delta, best=True),
    _Column("seeds", "seeds", "number of seeds, and the spread over them",
            lambda r: str(r.seeds) if r.spread is None else f"{r.seeds} \u00b1{fixed(r.spread, 2)}", lambda r: r.seeds,
            spare="narrow"),
    _Column("samples_seen", "samples seen", "by all training of the chain",
            lambda r: count(r.samples_seen), lambda r: r.samples_seen, spare="medium"),
    _Column("flags", "flags", "what to know before believing the row",
            lambda r: r.flags.replace(";", "; "), lambda r: r.flags or None, text=True),
)  # fmt: skip
# What an opened row tells besides: label -> text from its line of the CSV. An empty text is not shown.
DETAILS: dict[str, Callable[[Mapping[str, str]], str]] = {
    "recipe": lambda line: line["recipe"],
    "asked for": lambda line: line["sparsity_target"],
    "all parameters": lambda line: _thousands(line["parameters"]),
    "parameters not zero": lambda line: _thousands(line["nonzero"]),
    "exact MACs": lambda line: _thousands(line["macs"]),
    "p, against dense": lambda line: line["p"],
    "steps": lambda line: _thousands(line["steps"]),
    "config": lambda line: line["config"],
}
NOTES = {
    "fraction": "Crosses are published results of full-size models, each as a share of its own paper's dense model: of "
    "other models, splits and protocols (listed below the table), hence no ranking against the rows here.",
    "size": "Crosses are published results of other protocols (listed below the table): no ranking against these rows.",
    "none": "Published results are of full-size models: they are drawn as shares of the dense model only.",
}


def page(suite: str, rows: Found, numbers: Sequence[Published]) -> str:
    """One self-contained HTML page of a suite. rows: its rows in a board's order, each with its records."""
    title = f"vlbench: suite {suite}"
    boards = [_board(list(group), numbers) for _, group in groupby(rows, key=lambda pair: pair[0].block)]
    _tell_apart(boards)
    columns = [{"key": c.name, "label": c.label, "title": c.title, "text": c.text, "spare": c.spare, "best": c.best}
               for c in SHOWN]  # fmt: skip
    data = {"columns": columns, "details": list(DETAILS), "boards": boards, "notes": NOTES}
    style, script = asset("style.css"), "".join(asset(f"{part}.js") for part in ("table", "chart", "board"))
    script = f'"use strict";\n(() => {{\n{script}}})();\n'
    note = f"{MINI_WARNING[0].upper()}{MINI_WARNING[1:]}. " if suite == "mini" else ""
    return filled(
        asset("board.html"),
        {
            "MADE": GENERATED,
            "TITLE": escaped(title),
            "NOTE": f"{note}Rows are compared within one board: one task, split, model and way of evaluation.",
            "FOOT": f"{LEGEND}. Digests and every column are in the CSV files beside this page.",
            "STYLE": style,
            "STYLE_HASH": source_hash(style),
            "SCRIPT": script,
            "SCRIPT_HASH": source_hash(script),
            "DATA": data_block(data, "cells"),
        },
    )


def _board(pairs: Found, numbers: Sequence[Published]) -> dict[str, Any]:
    """The rows of one block. tiny: its models share no axis with full-size ones."""
    rows = [row for row, _ in pairs]
    first = rows[0]
    table_rows = list(csv.DictReader(io.StringIO(csv_text(rows))))
    spots = measured(rows)
    lines = [
        _row(row, records, spot, cells) for (row, records), spot, cells in zip(pairs, spots, table_rows, strict=True)
    ]
    return {
        "id": f"{first.task}/{subject(first)}",
        "task": first.task,
        "title": f"{first.task}: {subject(first)}",
        "facts": f"{facts(first)}. {LEGEND}.",
        "metric": titled(first.task, first.metric),
        "higher": higher(first),
        "flags": meanings(flag for row in rows for flag in row.flags.split(";")),
        "tiny": first.suite == "mini",
        "rows": lines,
        "published": [_quote(spot) for spot in published(rows, numbers)],
    }


def _tell_apart(boards: Sequence[dict[str, Any]]) -> None:
    """Boards of one task and model differ in split, weights or way of evaluation: number them."""
    names = [board["id"] for board in boards]
    for at, board in enumerate(boards):
        if names.count(names[at]) > 1:
            number = names[: at + 1].count(names[at])
            board["id"] += f"/{number}"
            board["title"] += f" ({number})"


def _row(row: Row, records: Sequence[Record], spot: Spot, cells: dict[str, str]) -> dict[str, Any]:
    towers = {name: fmean(record.parameters.towers.get(name, 0.0) for record in records)
              for name in records[0].parameters.towers}  # fmt: skip
    fraction = spot.fraction
    share = fraction.value / row.value if fraction is not None and fraction.value is not None and row.value else None
    ends = [_rounded(end) for end in (row.low, row.high)]
    return {
        "cells": [column.cell(row) for column in SHOWN],
        "keys": [_rounded(column.key(row)) for column in SHOWN],
        "details": [text(cells) for text in DETAILS.values()],
        "metrics": [[titled(row.task, metric), fixed(value, 2)] for metric, value in other_metrics(records).items()],
        "by_seed": _by_seed(records),
        "towers": [[name, _rounded(gone)] for name, gone in towers.items()],
        "dense": row.dense,
        "section": row.section,
        "pattern": row.pattern,
        "training": "trained" if row.trained else "untrained",
        "verdict": verdict(row),
        "size": [*_size(spot.size), *ends],
        "fraction": fraction
        and [
            *_size(fraction),
            *(e if e is None or share is None else _rounded(e * share) for e in (row.low, row.high)),
        ],
    }


def _quote(spot: Spot) -> dict[str, Any]:
    size = spot.size
    numbers = ["" if number is None else count(round(number)) for number in (size.params, size.macs)]
    return {
        "name": spot.name,
        "protocol": spot.protocol,
        "texts": ["" if size.value is None else f"{size.value:g}", *numbers],
        "size": _size(size),
        "fraction": spot.fraction and _size(spot.fraction),
    }


def _size(size: Size) -> list[Key]:
    return [_rounded(number) for number in (size.params, size.macs, size.value)]


def _rounded(value: Key) -> Key:
    return round(value, DIGITS) if isinstance(value, float) else value


def _pattern(row: Row) -> str:
    return f"{row.pattern}, trained" if row.trained else row.pattern


def _unbroken(text: str) -> str:
    """An interval stays on one line, which in a narrow window is one below its value."""
    return text.replace(", ", ",\u00a0")


def _by_seed(records: Sequence[Record]) -> str:
    """The value of every seed of a row that has several."""
    if len(records) == 1:
        return ""
    return ", ".join(f"{fixed(record.interval.value, 2)} (seed {record.seed})" for record in records)


def _thousands(number: str) -> str:
    return f"{int(number):,}" if number else ""
