"""`vlbench reproduce NAME`: a paper's table as cells, what it printed against what was measured here.

A file of leaderboards/paper is a sweep file with one cell a line. Behind #= stands what was printed of it:

    task=nlvr2 suite=full method=upop recipe=paper sparsity=0.5 #= row="UPop 2x" split="test-P" accuracy=81.13

row, split and protocol are words for the reader; differs= says why the two numbers are of different protocols; all else
are numbers in the units of the task's metrics, x where the paper's training did not converge.
"""

from __future__ import annotations

import json as jsonlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..cell.words import parse
from ..errors import UserError, did_you_mean
from ..machine.ui import Screen
from ..plugins.workspace import boards_folder
from ..records.flags import agrees
from ..records.record import Record, finished
from .planning import Planned
from .planning import plan as planning
from .sweepfile import Line

MARK = "#="
TOLD = ("row", "split", "protocol", "differs")  # the words behind MARK that are no numbers
FAILED = "x"
NEEDED = "(needed by"  # how the planner's line begins that names the cells

Verdict = Literal["agrees", "differs", "not run", "protocol differs", "not measured", "did not converge there"]


@dataclass(frozen=True)
class Printed:
    """One line of a paper's table. numbers: metric -> what was printed, None where it did not converge."""

    line: Line
    row: str
    split: str
    protocol: str
    differs: str
    numbers: Mapping[str, float | None]


@dataclass(frozen=True)
class Compared:
    """One printed number and ours. low, high: 95 % interval, where there is a number of ours. why: of a verdict."""

    row: str
    task: str
    split: str
    metric: str
    published: float | None
    verdict: Verdict
    measured: float | None = None
    low: float | None = None
    high: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Reproduction:
    """A table at work. cells: of each line, the cell it means, or why there is none yet (data or weights that lack)."""

    lines: Sequence[Printed]
    cells: Sequence[Planned | str]
    planned: Sequence[Planned]

    def missing(self) -> list[str]:
        """What lacks, each once, in the order of the table."""
        return list(dict.fromkeys(why for cell in self.cells if isinstance(cell, str) for why in cell.splitlines()))


def names(folder: Path | None = None) -> list[str]:
    """The tables that ship here."""
    return sorted(file.stem for file in (folder or boards_folder() / "paper").glob("*.sweep"))


def table_file(name: str) -> Path:
    """The file of a table, by its name or its path. Raises UserError where there is none."""
    if name.endswith(".sweep"):
        return Path(name)
    if name not in names():
        raise UserError(
            f"there is no table {name!r} (or give a path that ends with .sweep). {did_you_mean(name, names())}"
        )
    return boards_folder() / "paper" / f"{name}.sweep"


def read_table(file: Path, given: Mapping[str, str]) -> list[Printed]:
    """The lines of a table whose words agree with the given ones (task=nlvr2). Raises UserError naming a wrong line."""
    try:
        texts = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    numbers = [number for n, text in enumerate(texts, 1) if (number := _printed(text, f"{file}, line {n}")) is not None]
    keys = {key for number in numbers for key in number.line.words}
    if wrong := [key for key in given if key not in keys]:
        raise UserError(f"{wrong[0]}= is in no line of {file.name}. {did_you_mean(wrong[0], keys)}")
    kept = [number for number in numbers if all(number.line.words.get(k) in v.split(",") for k, v in given.items())]
    if not kept:
        words = " ".join(f"{key}={value}" for key, value in given.items())
        raise UserError(f"{file.name} has no line with {words or 'a cell'}.")
    return kept


def _printed(text: str, place: str) -> Printed | None:
    words, mark, printed = text.partition(MARK)
    try:
        words_of_line = parse(shlex.split(words, comments=True))
        if not words_of_line:  # a comment
            return None
        fields = parse(shlex.split(printed))
        numbers = {k: None if v == FAILED else float(v) for k, v in fields.items() if k not in TOLD}
    except (UserError, ValueError) as error:
        raise UserError(f"{place}: {error}") from None
    if not mark or not numbers or "row" not in fields:
        raise UserError(
            f'{place}: what was printed should stand behind {MARK}, like {MARK} row="UPop 2x" accuracy=81.13'
        )
    return Printed(
        Line(words_of_line, place),
        fields["row"],
        fields.get("split", ""),
        fields.get("protocol", ""),
        fields.get("differs", ""),
        numbers,
    )


def opened(lines: Sequence[Printed], screen: Screen) -> Reproduction:
    """The cells of the lines, as far as data and weights are there."""
    cells: list[Planned | str] = []
    planned: dict[str, Planned] = {}
    by_words: dict[tuple[tuple[str, str], ...], Planned | str] = {}
    for number in lines:
        key = tuple(sorted(number.line.words.items()))
        if key not in by_words:
            by_words[key] = _cell(number, planned, screen)
        cells.append(by_words[key])
    return Reproduction(lines, cells, list(planned.values()))


def _cell(number: Printed, planned: dict[str, Planned], screen: Screen) -> Planned | str:
    try:
        cells = planning([number.line], screen.building, screen.digesting)
    except UserError as error:
        sentences = str(error).replace(f"{number.line.place}: ", "").splitlines()
        return "\n".join(line for line in sentences if not line.strip().startswith(NEEDED))
    planned.update({cell.cell: cell for cell in cells})
    # Baselines stand first; the line's own cell is the one that is no baseline, or the only one.
    return cells[-1]


def compared(table: Reproduction, runs: Path) -> Iterator[Compared]:
    """Every printed number against ours."""
    for number, cell in zip(table.lines, table.cells, strict=True):
        record = None if isinstance(cell, str) else finished(runs / cell.cell)
        for metric, published in number.numbers.items():
            yield _verdict(number, metric, published, record, cell if isinstance(cell, str) else "")


def _verdict(number: Printed, metric: str, published: float | None, record: Record | None, lacking: str) -> Compared:
    task = number.line.words["task"]

    def compared(verdict: Verdict, why: str = "", **ours: Any) -> Compared:
        return Compared(number.row, task, number.split, metric, published, verdict, why=why, **ours)

    if record is None:
        return compared("not run", lacking.splitlines()[0] if lacking else number.differs)
    value = record.metrics.get(metric, record.metrics[record.metric] if number.differs else None)
    if value is None:
        why = record.unmeasured.get(metric, f"{record.task} has no {metric} with these settings")
        return compared("not measured", why)
    # The interval is the primary metric's; another one of the same samples is given its width.
    half = (record.interval.value - record.interval.low, record.interval.high - record.interval.value)
    ours: dict[str, Any] = {"measured": value, "low": value - half[0], "high": value + half[1]}
    if number.differs:
        return compared("protocol differs", number.differs, **ours)
    if published is None:
        return compared("did not converge there", **ours)
    return compared("agrees" if agrees(published, ours["low"], ours["high"]) else "differs", **ours)


def print_table(table: Reproduction, runs: Path, *, json: bool) -> None:
    """Published against measured; then what lacks."""
    rows = list(compared(table, runs))
    if json:
        print(jsonlib.dumps({"rows": [vars(row) for row in rows], "missing": table.missing()}, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    columns = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("task", "row", "split", "metric"):
        columns.add_column(name, overflow="fold")
    for name in ("published", "measured", "95 %"):
        columns.add_column(name, justify="right", no_wrap=True)
    columns.add_column("verdict", overflow="fold")
    for row in rows:
        interval = "" if row.low is None else f"[{row.low:.2f}, {row.high:.2f}]"
        numbers = ["" if v is None else f"{v:.2f}" for v in (row.published, row.measured)]
        columns.add_row(row.task, row.row, row.split, row.metric, *numbers, interval, row.verdict)
    console = Console()
    console.print(columns)
    counts = {
        verdict: sum(row.verdict == verdict for row in rows) for verdict in dict.fromkeys(r.verdict for r in rows)
    }
    console.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()), highlight=False)
    for why in dict.fromkeys(row.why for row in rows if row.verdict in ("protocol differs", "not measured")):
        console.print(f"note: {why}", highlight=False, soft_wrap=True, markup=False)
    for why in table.missing():  # as they are: [roots] of vlbench.toml is no markup
        console.print(f"missing: {why}", highlight=False, soft_wrap=True, markup=False)
