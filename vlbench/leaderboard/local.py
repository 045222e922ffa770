"""The table after a run: committed rows and the user's own, for one task."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..disk.storage import write_text
from ..errors import UserError
from ..plugins.workspace import boards_folder
from ..records.record import Record, read_local
from .excerpt import Excerpt, others_line
from .rows import Row, load_results, merge, ranked, row_alone, rows
from .scales import titled
from .tables import csv_text
from .terminal import show

if TYPE_CHECKING:
    from rich.console import Console


def print_board(record: Record, runs: Path) -> None:
    """Print the whole board of the record's task, local rows marked, and write runs/tables/<suite>/<task>.csv. Metrics
    that this machine could not measure are told first, with the reason."""
    console = _console()
    _say_unmeasured(record, console)
    rows, local = board_rows(record, runs)
    if not rows:
        return _alone(record, runs).show(console)
    show(rows, local, console)
    console.print(f"{_write_table(record, rows, runs)}", style="dim", highlight=False)
    return None


def print_excerpt(record: Record, runs: Path, *, metrics: bool = False) -> None:
    """Print what a run ends with (excerpt.py), and write the board's table as `print_board` does. metrics: also the
    secondary ones."""
    console = _console()
    _say_unmeasured(record, console)
    rows, local = board_rows(record, runs) if ranked(record) else ([], set())
    config = row_alone(record).config
    row = next((row for row in rows if row.config == config), None)
    excerpt = (
        _alone(record, runs) if row is None else Excerpt(row, rows, local, file=str(_write_table(record, rows, runs)))
    )
    excerpt.show(console)
    if metrics:
        console.print(others_line(record, _dense(record, runs)), markup=False, highlight=False, soft_wrap=True)


def _console() -> Console:
    from rich.console import Console

    return Console()


def _say_unmeasured(record: Record, console: Console) -> None:
    for metric, reason in record.unmeasured.items():
        sentence = f"{titled(record.task, metric)} is not measured: {reason}"
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _alone(record: Record, runs: Path) -> Excerpt:
    """A run that enters no board, beside the dense model that it was compared with."""
    dense = _dense(record, runs)
    same = [row_alone(other) for other in [dense] if other is not None and other.cell != record.cell]
    return Excerpt(row_alone(record), same, set(), ", ".join(record.flags) or "incomplete")


def _dense(record: Record, runs: Path) -> Record | None:
    """The dense model's record on the same samples: a local one, or the committed."""
    records = [*readable(runs), *load_results(boards_folder() / "results")]
    same = (other for other in records if comparable(other, record) and other.samples == record.samples)
    return next((other for other in same if row_alone(other).dense), None)


def _write_table(record: Record, rows: list[Row], runs: Path) -> Path:
    path = runs / "tables" / record.suite / f"{record.task}.csv"
    write_text(path, csv_text(rows))
    return path


def board_rows(record: Record, runs: Path) -> tuple[list[Row], set[str]]:
    """Rows of the record's board that may stand beside it, and which of them are local."""
    committed = [r for r in load_results(boards_folder() / "results") if comparable(r, record)]
    mine = [r for r in readable(runs) if comparable(r, record)]
    records, local = merge(committed, mine)
    return rows(records), local


def readable(runs: Path) -> list[Record]:
    """Finished runs; one that is damaged is told and left out: it must not hide the row that was just made."""
    lines = []
    for file in sorted(runs.glob("*/result.json")):
        if file.parent.is_symlink():
            print(
                f"vlbench: left out of the table: {file.parent} is a link, and no run of this folder.", file=sys.stderr
            )
            continue
        try:
            lines.append(read_local(file.parent))
        except UserError as error:
            print(f"vlbench: left out of the table: {error}", file=sys.stderr)
    return lines


def comparable(a: Record, b: Record) -> bool:
    """Rows are compared only within one suite, task version, split, model and evaluation settings."""
    return all(
        getattr(a, field) == getattr(b, field)
        for field in ("suite", "task", "task_version", "split_digest", "model", "label", "weights_digest", "evaluation")
    )
