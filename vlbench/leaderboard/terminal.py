"""Rows as a table in a terminal, as wide as it is. The text is the same in a pipe, but for colours and widths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from .metric import verdict
from .rows import Row
from .scales import titled
from .tables import LEGEND, MINI_WARNING, count, difference, estimate, facts, name, percent, reduced, seeds, subject

if TYPE_CHECKING:
    from rich.console import Console

GAP = "  "
SHORTEST = 12  # characters that a name keeps before columns of costs leave


@dataclass(frozen=True)
class _Column:
    """A column of the terminal table. style: of a cell, from its row. leaves: its turn in a narrow terminal."""

    header: str
    cell: Callable[[Row], str]
    style: Callable[[Row], str] = lambda row: "bold" if row.dense else ""
    left: bool = False
    leaves: int = 0


class Table:
    """Columns that fit a terminal: one that is too narrow shortens parameters and MACs to their reduction, loses
    samples seen and seeds, shortens names (to a point), and loses MACs and parameters last. hidden: what it lost."""

    def __init__(self, rows: Sequence[Row], local: set[str], console: Console, *, whole_names: bool = True) -> None:
        self.rows, self.local, self.console, self.whole_names = rows, local, console, whole_names
        self.limit = console.width if console.is_terminal else None
        self.name_width = max((len(name(row)) for row in rows), default=0)
        self.hidden: list[str] = []
        self.columns = self._columns(short=False)
        if not self._fits():
            self.columns = self._columns(short=True)
        for leaving in sorted((c for c in self.columns if c.leaves), key=lambda c: c.leaves):
            if leaving.leaves > 2 and not whole_names:
                self._shorten_names()
            if self._fits():
                break
            self.columns = [c for c in self.columns if c is not leaving]
            self.hidden.append(leaving.header)
        self.widths = self._widths()

    def _columns(self, short: bool) -> list[_Column]:
        metric, trained = titled(self.rows[0].task, self.rows[0].metric), any(row.trained for row in self.rows)
        return [
            _Column("  method", self._name, left=True),
            _Column("sparse" if short and not self.whole_names else "sparsity", lambda row: percent(row.sparsity)),
            _Column("params", lambda row: reduced(row.nonzero, row.model_reduction, short), leaves=4),
            _Column("MACs", lambda row: reduced(row.macs, row.macs_reduction, short), leaves=3),
            _Column(metric, lambda row: estimate(row.value, row.low, row.high, 1)),
            _Column("vs dense", lambda row: difference(row.delta, row.delta_low, row.delta_high, 1), _verdict),
            _Column("seeds", lambda row: seeds(row, 1), leaves=2),
            *([_Column("seen", lambda row: count(row.samples_seen) if row.trained else "", leaves=1)] * trained),
        ]

    def _name(self, row: Row) -> str:
        text = name(row)
        text = text if len(text) <= self.name_width else text[: self.name_width - 1] + "\u2026"
        return f"{'*' if row.config in self.local else ' '} {text}"

    def _shorten_names(self) -> None:
        """By as much as lacks, but not below SHORTEST."""
        lacking = 0 if self.limit is None else self.width - self.limit
        self.name_width = max(min(SHORTEST, self.name_width), self.name_width - max(0, lacking))

    @property
    def width(self) -> int:
        widths = self._widths()
        return sum(widths) + len(GAP) * (len(widths) - 1)

    def _fits(self) -> bool:
        return self.limit is None or self.width <= self.limit

    def _widths(self) -> list[int]:
        return [max(len(c.header), *(len(c.cell(row)) for row in self.rows)) for c in self.columns]

    def line(self, *parts: tuple[str, str]) -> None:
        """Texts with their styles, on one line."""
        from rich.text import Text

        self.console.print(Text.assemble(*parts), soft_wrap=True)

    def print_head(self) -> None:
        self._cells((c.header for c in self.columns), ["dim"] * len(self.columns))

    def print_row(self, row: Row) -> None:
        self._cells((c.cell(row) for c in self.columns), (c.style(row) for c in self.columns))

    def print_rule(self, text: str) -> None:
        dash = "\u2500" if self.console.encoding.lower().startswith("utf") else "-"
        self.line((f"{dash * 2} {text} ".ljust(self.width, dash), "cyan"))

    def _cells(self, texts: Iterable[str], styles: Iterable[str]) -> None:
        padded = (
            t.ljust(w) if c.left else t.rjust(w) for c, t, w in zip(self.columns, texts, self.widths, strict=True)
        )
        self.line(*zip((text if i == 0 else GAP + text for i, text in enumerate(padded)), styles, strict=True))


def _verdict(row: Row) -> str:
    """Colour only a difference whose interval excludes zero."""
    return {"good": "green", "bad": "red"}.get(verdict(row), "")


def show(rows: Sequence[Row], local: set[str], console: Console) -> None:
    """Print whole boards. local: the `config` of rows to mark as the user's own."""
    for _, block in groupby(rows, key=lambda row: row.block):
        _show_block(list(block), local, console)
    notes = ["rows marked * are local runs in runs/"] if any(row.config in local for row in rows) else []
    notes += [MINI_WARNING] if any(row.suite == "mini" for row in rows) else []
    for note in notes:
        console.print(note, style="dim", soft_wrap=True, highlight=False)


def _show_block(rows: Sequence[Row], local: set[str], console: Console) -> None:
    table = Table(rows, local, console)
    table.line((f"{rows[0].suite} / {rows[0].task} / {subject(rows[0])}", "bold"))
    table.print_head()
    for section, group in groupby(rows, key=lambda row: row.section):
        if section != "dense":
            table.print_rule(section)
        for row in group:
            table.print_row(row)
    table.line((f"{facts(rows[0])}.", "dim"))
    table.line((f"{LEGEND}.", "dim"))
    for flagged in dict.fromkeys(f"{name(row)}: {row.flags}" for row in rows if row.flags):
        table.line((f"flagged {flagged}", "yellow"))
    if any(row.trained for row in rows):
        table.line(("seen: samples that training took in, with those of candidates that a search dropped.", "dim"))
    if table.hidden:
        table.line((f"not shown at {console.width} columns: {', '.join(table.hidden)}.", "dim"))
    for row in rows:
        if row.converged is False:
            table.line((f"not converged: {name(row)} at {percent(row.sparsity)}", "yellow"))
    table.line()
