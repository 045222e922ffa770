"""What a run ends with: the dense model, the run's row and its nearest rows of the board, and one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..records.record import Record
from .metric import higher
from .rows import Row
from .scales import titled
from .tables import MINI_WARNING, estimate, facts, fixed, name, subject
from .terminal import Table

if TYPE_CHECKING:
    from rich.console import Console

LINES = 8  # besides the sentence
FRAME = 3  # of them: title, heads of columns, notes
ALIKE = 0.01  # sparsities that differ by less are alike


@dataclass(frozen=True)
class Excerpt:
    """One row among those of its board. why: what keeps it out of every board, empty where nothing does. file: the
    whole board as CSV, where it was written."""

    row: Row
    board: Sequence[Row]
    local: set[str]
    why: str = ""
    file: str = ""

    @property
    def dense(self) -> Row | None:
        """The model that the row is compared with."""
        return next((row for row in self.board if row.dense), None)

    def shown(self) -> list[Row]:
        """The dense model, then the row and as many others as there is room for, the best first."""
        dense = self.dense
        first = [dense] if dense is not None else []
        room = LINES - FRAME - len(first) - 1 - len(self._warnings([self.row]))
        others = [row for row in self.board if row.config not in (self.row.config, dense and dense.config)]
        rows = sorted(others, key=self._distance)[: max(0, room)] if not self.why else []
        rows += [self.row] * (self.row.config not in {row.config for row in first})
        return first + sorted(rows, key=lambda row: row.value, reverse=higher(self.row))

    def _distance(self, row: Row) -> tuple[bool, int, float]:
        """Rows of the same pattern and training are nearest, of these those of a like sparsity, then of a like
        value."""
        steps = int(abs(row.sparsity - self.row.sparsity) / ALIKE)
        return row.section != self.row.section, steps, abs(row.value - self.row.value)

    def _warnings(self, rows: Sequence[Row]) -> list[str]:
        """What must be known before a row is believed."""
        lines = [f"flagged {name(row)}: {row.flags}" for row in rows if row.flags and not self.why]
        return lines + [f"not converged: {name(row)}" for row in rows if row.converged is False]

    def show(self, console: Console) -> None:
        """Print it. Cost columns stay in a narrow terminal; which columns are not shown is said."""
        from rich.text import Text

        rows = self.shown()
        table = Table(rows, self.local | ({self.row.config} if self.why else set()), console, whole_names=False)
        console.print(Text(f"{self.row.suite} / {self.row.task} / {subject(self.row)}: {_samples(self.row)}", "bold"))
        table.print_head()
        for row in rows:
            table.print_row(row)
        for line in self._warnings([self.row]):
            console.print(Text(line, "yellow"), soft_wrap=True)
        notes = ["* run here"] if any(row.config in table.local for row in rows) else []
        notes += [MINI_WARNING] if self.row.suite == "mini" else []
        notes += [f"not shown at {console.width} columns: {', '.join(table.hidden)}"] if table.hidden else []
        console.print(Text("; ".join(notes), "dim"), soft_wrap=True)
        console.print(Text(self.sentence(len(rows))), soft_wrap=True)

    def sentence(self, shown: int) -> str:
        """What the run says, and where the rest is."""
        row, dense = self.row, self.dense
        metric = titled(row.task, row.metric)
        if self.why:
            text = f"{name(row)}: {metric} {estimate(row.value, row.low, row.high, 1)}; not for a board: {self.why}"
            return f"{text}."
        if row.dense or dense is None or not dense.value:
            text = f"{name(row)}: {metric} {estimate(row.value, row.low, row.high, 1)}"
        else:
            kept = f"keeps {fixed(100 * row.value / dense.value, 1)} % of {metric}"
            if not higher(row) or row.value > dense.value:
                kept = f"has {metric} {fixed(row.value, 1)} ({fixed(dense.value, 1)} dense)"
            text = f"{name(row)} {kept} at {fixed(100 * row.sparsity, 1)} % sparsity"
            gone = round(100 * (row.macs_reduction or 0))
            text += f", {-gone:+d} % MACs" if gone else ", no fewer MACs"
        more = len(self.board) - shown
        rest = f"; {more} more rows: --board" if more > 0 else ""
        return f"{text}{rest}" + (f", {self.file}" if self.file else "")


def _samples(row: Row) -> str:
    return f"{facts(row).split(': ', 1)[1]}, 95 % intervals"


def others_line(record: Record, dense: Record | None) -> str:
    """The secondary metrics of a run and, where it is there, of its dense model: for --metrics."""
    names = [metric for metric in record.metrics if metric != record.metric]
    parts = []
    for metric in names:
        beside = f" (dense {fixed(dense.metrics[metric], 1)})" if dense and metric in dense.metrics else ""
        parts.append(f"{titled(record.task, metric)} {fixed(record.metrics[metric], 1)}{beside}")
    return "other metrics: " + (", ".join(parts) or "none")
