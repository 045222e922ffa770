"""`vlbench table`: chosen rows as CSV, Markdown or LaTeX, or against the severity of what was perturbed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from ..errors import UserError, did_you_mean
from .filters import FILTERS, absent, selected
from .latex import latex
from .metric import higher
from .rows import Row
from .severity import severity_text
from .tables import csv_text, markdown

FORMATS = ("markdown", "latex", "csv", "severity")


def table_text(words: Mapping[str, str], runs: Path, cells: Collection[str] | None = None) -> tuple[str, list[str]]:
    """The rows that the words describe, in the format that they name, and a sentence on what is not in it. cells: of a
    sweep, whose rows alone are taken then. Raises UserError for words that fit no row."""
    wanted = words.get("format", FORMATS[0])
    if wanted not in FORMATS:
        raise UserError(f"format={wanted} is not known. {did_you_mean(wanted, FORMATS)}")
    chosen, _ = selected({k: v for k, v in words.items() if k in FILTERS}, runs, cells)
    if wanted == "severity":
        return severity_text(chosen), absent(cells, chosen)
    rows = [row for row, _ in chosen]
    text = csv_text(rows) if wanted == "csv" else latex(rows, higher) if wanted == "latex" else _pages(rows)
    return text, absent(cells, chosen)


def _pages(rows: Sequence[Row]) -> str:
    boards = groupby(rows, key=lambda row: (row.suite, row.task))
    return "\n".join(markdown(list(board), generated=False) for _, board in boards)
