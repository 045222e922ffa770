"""Rows by the words of a command: committed results and the user's own, narrowed down by task=, model= and so on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ..errors import UserError, did_you_mean
from ..plugins.workspace import boards_folder
from ..records.record import Record, read_local
from .local import readable
from .rows import Row, load_results, merge, ranked, rows_of
from .tables import fixed, name

FILTERS = ("suite", "task", "split", "model", "method", "pattern", "sparsity")
SHOWN = 8  # rows that an error names

Found = tuple[Row, list[Record]]


def selected(
    words: Mapping[str, str], runs: Path, cells: Collection[str] | None = None
) -> tuple[list[Found], set[str]]:
    """The rows that the words describe, in a board's order, with their records, and the `config` of those that have
    local results, which take the place of committed ones. cells: those of a sweep, and no others. Raises UserError for
    a word that leaves no row, naming it."""
    committed, mine = load_results(boards_folder() / "results"), readable(runs)
    if cells is not None:
        committed, mine = ([r for r in some if r.cell in cells] for some in (committed, mine))
    records, local = merge(committed, mine)
    rows = rows_of(records)
    if cells is not None and not rows:
        raise UserError(f"none of the sweep's {len(cells)} cells has a result: run vlbench sweep with the same file.")
    for key, value in words.items():
        left = [pair for pair in rows if _text(pair[0], key) == value]
        if not left:
            values = sorted({_text(row, key) for row, _ in rows})
            raise UserError(f"there are no results of {key}={value}. {did_you_mean(value, values)}")
        rows = left
    return rows, local


def absent(cells: Collection[str] | None, rows: Sequence[Found]) -> list[str]:
    """A sentence where cells of a sweep are in none of the rows."""
    there = {record.cell for _, records in rows for record in records}
    count = sum(cell not in there for cell in cells or ())
    return [f"{count} of the sweep's {len(cells or ())} cells: not finished, or of other words."] if count else []


def _text(row: Row, key: str) -> str:
    return row.sparsity_target if key == "sparsity" else str(getattr(row, key))


def named(names: Sequence[str], rows: Sequence[Found], runs: Path) -> list[Found]:
    """The row of each name: a `config` of a table, a cell, a run's folder, or a method that has one row (upop, or with
    its target upop@0.5). Of a method's rows the one that a table calls by the method alone is meant, and of blocks the
    only one that has a row of every name. Raises UserError for a name of none, of several, or of a row that was named
    before."""
    every = [_candidates(text, rows, runs) for text in names]
    blocks = {pair[0].block for some in every for pair in some}
    fitting = [block for block in blocks if all(sum(p[0].block == block for p in some) == 1 for some in every)]
    chosen: dict[str, Found] = {}
    for text, some in zip(names, every, strict=True):
        pair = _only([p for p in some if len(fitting) != 1 or p[0].block == fitting[0]], text)
        if pair[0].config in chosen:
            raise UserError(f"{text} names a row that was named before: {described(pair[0])}.")
        chosen[pair[0].config] = pair
    return list(chosen.values())


def _candidates(text: str, rows: Sequence[Found], runs: Path) -> list[Found]:
    """Raises UserError where there are none."""
    cell = _cell_of_run(text, runs) or text
    method, _, target = text.partition("@")
    asked = [pair for pair in rows if target in ("", pair[0].sparsity_target)]
    ways = (
        [pair for pair in rows if pair[0].config == text or any(r.cell == cell for r in pair[1])],
        [pair for pair in asked if name(pair[0]) == method],
        [pair for pair in asked if pair[0].method == method],
    )
    matches = next(filter(None, ways), [])
    if not matches:
        methods = {row.method for row, _ in rows}
        hint = did_you_mean(text, methods)
        raise UserError(f"no row is named {text!r}: {hint} A config or a run's name will do, too.")
    return matches


def _only(matches: Sequence[Found], text: str) -> Found:
    if len(matches) == 1:
        return matches[0]
    listed = [f"  {row.config}  {described(row)}" for row, _ in matches[:SHOWN]]
    more = [f"  and {len(matches) - SHOWN} more"] if len(matches) > SHOWN else []
    head = f"{text} names {len(matches)} rows: narrow it down by task= or model=, write METHOD@SPARSITY, or a config:"
    raise UserError("\n".join([head, *listed, *more]))


def _cell_of_run(text: str, runs: Path) -> str:
    """The cell of a run's folder or name; empty where there is none."""
    for folder in (Path(text), runs / text):
        if (folder / "result.json").is_file():
            record = read_local(folder)
            if not ranked(record):
                raise UserError(f"{folder} is no row of a board: {', '.join(record.flags)}.")
            return record.cell
    return ""


def described(row: Row) -> str:
    """One line that tells a row from others."""
    flags = f" ({row.flags})" if row.flags else ""
    return f"{row.suite} {row.task} {row.model} {name(row)} {row.pattern} {fixed(100 * row.sparsity, 1)}%{flags}"
