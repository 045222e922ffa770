"""How a board on disk differs from what its results give, for people: which row, which column, old -> new."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from itertools import islice, zip_longest

from ..leaderboard.rows import COLUMNS

LISTED = 20  # lines that one file gets
KEY = ("suite", "task", "model", "label", "config")


def differences(name: str, present: str, wanted: str) -> list[str]:
    """Lines on how the file `name` differs, at most LISTED of them. present, wanted: its text and the right one."""
    differences = list(_of_csv(present, wanted) if name.endswith(".csv") else ()) or list(_of_text(present, wanted))
    more = [f"{name}: and {len(differences) - LISTED} more"] if len(differences) > LISTED else []
    return [*(f"{name}: {line}" for line in differences[:LISTED]), *more]


def _of_csv(present: str, wanted: str) -> Iterator[str]:
    old, new = _rows(present), _rows(wanted)
    if old is None or new is None:
        return
    yield from (f"no row of {_row(new[key])}" for key in new if key not in old)
    yield from (f"no result gives the row {_row(old[key])}" for key in old if key not in new)
    for key in (key for key in new if key in old):
        for column in COLUMNS:
            if old[key][column] != new[key][column]:
                yield f"row {_row(new[key])}: {column} {old[key][column]!r} -> {new[key][column]!r}"
    if old == new and list(old) != list(new):
        yield "its rows are in another order"


def _rows(text: str) -> dict[tuple[str, ...], dict[str, str]] | None:
    """Rows by what names them; None where the text is no board or has a row twice."""
    lines = list(csv.reader(io.StringIO(text, newline="")))
    if not lines or tuple(lines[0]) != COLUMNS or any(len(line) != len(COLUMNS) for line in lines):
        return None
    rows = [dict(zip(COLUMNS, line, strict=True)) for line in lines[1:]]
    by_key = {tuple(row[name] for name in KEY): row for row in rows}
    return by_key if len(by_key) == len(rows) else None


def _row(row: Mapping[str, str]) -> str:
    return f"{row['model']} {row['method']} {row['sparsity']} ({row['config']})"


def _of_text(present: str, wanted: str) -> Iterator[str]:
    """Line by line, with the line ends to be seen."""
    old, new = present.split("\n"), wanted.split("\n")
    for tag, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag != "equal":
            pairs = zip_longest(islice(old, a, b), islice(new, c, d))
            yield from (f"line {a + 1 + i}: {_shown(x)} -> {_shown(y)}" for i, (x, y) in enumerate(pairs))


def _shown(line: str | None) -> str:
    return "nothing" if line is None else repr(line)
