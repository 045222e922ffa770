"""The table after a run: committed rows and the user's own, for one task."""

from __future__ import annotations

import sys
from pathlib import Path

from ..disk.storage import write_text
from ..errors import UserError
from ..plugins.workspace import boards_folder
from ..records.record import Record, read_record
from .metric import titled
from .rows import Row, load_results, merge, rows
from .tables import csv_text, show


def print_board(record: Record, runs: Path) -> None:
    """Print the board of the record's task, local rows marked, and write runs/tables/<suite>/<task>.csv. Metrics that
    this machine could not measure are told first, with the reason."""
    from rich.console import Console

    rows, local = board_rows(record, runs)
    console = Console()
    for metric, reason in record.unmeasured.items():
        sentence = f"{titled(record.task, metric)} is not measured: {reason}"
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    if not rows:
        sentence = f"{titled(record.task, record.metric)} {record.interval.value:.2f}"
        console.print(f"{sentence} (not for a board: {', '.join(record.flags)})")
        return
    show(rows, local, console)
    path = runs / "tables" / record.suite / f"{record.task}.csv"
    write_text(path, csv_text(rows))
    console.print(f"{path}", style="dim", highlight=False)


def board_rows(record: Record, runs: Path) -> tuple[list[Row], set[str]]:
    """Rows of the record's board that may stand beside it, and which of them are local."""
    committed = [r for r in load_results(boards_folder() / "results") if comparable(r, record)]
    own = [r for r in readable(runs) if comparable(r, record)]
    records, local = merge(committed, own)
    return rows(records), local


def readable(runs: Path) -> list[Record]:
    """Finished runs; one that is damaged is told and left out: it must not hide the row that was just made."""
    lines = []
    for file in sorted(runs.glob("*/result.json")):
        try:
            lines.append(read_record(file))
        except UserError as error:
            print(f"vlbench: left out of the table: {error}", file=sys.stderr)
    return lines


def comparable(a: Record, b: Record) -> bool:
    """Rows are compared only within one suite, task version, split, model and evaluation settings."""
    return all(
        getattr(a, field) == getattr(b, field)
        for field in ("suite", "task", "task_version", "split_digest", "model", "label", "weights_digest", "evaluation")
    )
