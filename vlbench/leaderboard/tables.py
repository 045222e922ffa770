"""Rows -> CSV for machines, Markdown for a repository's page. A terminal's table is terminal.py's.

Numbers are formatted here and nowhere else: fixed digits, no locale, "\\n" line ends.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from itertools import groupby

from .rows import COLUMNS, Row
from .scales import titled

# Digits after the point in the CSV; every other number there is an integer.
DIGITS = {
    **dict.fromkeys(("sparsity", "model_reduction", "macs_reduction"), 4),
    **dict.fromkeys(("value", "low", "high", "spread", "delta", "delta_low", "delta_high"), 4),
}
MINI_WARNING = "mini ranks do not predict full ranks"
IDENTICAL = "(every score the same)"
LEGEND = "Intervals are 95 %; vs dense is paired"
GENERATED = "<!-- Made by `vlbench leaderboard` from leaderboards/results; do not edit. -->"


def csv_text(rows: Sequence[Row]) -> str:
    """The board: a header, then a line a row. Empty: not measured, or not defined."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([_cell(name, getattr(row, name)) for name in COLUMNS] for row in rows)
    return stream.getvalue()


def _cell(name: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "p":
        return f"{value:.4g}"
    return fixed(value, DIGITS[name]) if isinstance(value, float) else _harmless(value)


def _harmless(value: object) -> str:
    """A text that a spreadsheet would run as a formula has an apostrophe before it; a number has none."""
    text = str(value)
    return f"'{text}" if isinstance(value, str) and text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def fixed(value: float, digits: int) -> str:
    """A number with fixed digits; what rounds to zero has no sign."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def p_value(p: float) -> str:
    """Three digits; below them nothing is said but that it is below."""
    return "<0.001" if p < 0.001 else fixed(p, 3)


def estimate(value: float | None, low: float | None, high: float | None, digits: int, sign: str = "") -> str:
    """ "81.2 [79.9, 82.5]"; the value alone where there is no interval."""
    if value is None:
        return ""
    text = fixed(value, digits)
    text = f"{sign}{text}" if float(text) > 0 else text
    return text if low is None or high is None else f"{text} [{fixed(low, digits)}, {fixed(high, digits)}]"


def difference(delta: float | None, low: float | None, high: float | None, digits: int) -> str:
    """ "+1.2 [0.3, 2.1]"; of models that score the same on every sample, that they do: there is no interval of it."""
    text = estimate(delta, low, high, digits, "+")
    return f"{fixed(0.0, digits)} {IDENTICAL}" if delta == low == high == 0 else text


def count(number: int | None) -> str:
    """Three digits and a unit: 86.4M parameters, 17.6G MACs."""
    if number is None or number < 1000:
        return "" if number is None else str(number)
    short = float(f"{number:.3g}")  # rounded first: 999,999 is 1.00M
    unit, size = next((u, s) for u, s in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)) if short >= s)
    whole = short / size
    return f"{whole:.{2 if whole < 10 else 1 if whole < 100 else 0}f}{unit}"


def reduced(number: int | None, reduction: float | None, short: bool = False) -> str:
    """ "1.23M -37%": what is left, and how much of the whole model is gone (short: only the latter)."""
    if not reduction or round(100 * reduction) == 0:  # a few exact zeros are no reduction
        return count(number)
    gone = f"{fixed(-100 * reduction, 0)}%"
    return gone if short else f"{count(number)} {gone}"


def name(row: Row) -> str:
    """Method, a recipe that is not its suite's own, and the options that tell the row from its neighbours."""
    recipe = f"({row.recipe})" if row.recipe not in ("", "default", row.suite) else ""
    return " ".join(word for word in (row.method, recipe, row.options) if word)


def markdown(rows: Sequence[Row], generated: bool = True) -> str:
    """The same board (at least one row) as a page: a heading a block, a table a section, dense on top. generated: say
    in it that it is made from the committed results."""
    first = rows[0]
    lines = [f"# {_escaped(first.task)}, suite {_escaped(first.suite)}", "", *([GENERATED, ""] if generated else [])]
    lines += [f"In suite mini, {MINI_WARNING}.", ""] if first.suite == "mini" else []
    for _, block in groupby(rows, key=lambda row: row.block):
        members = list(block)
        lines += [f"## {_escaped(subject(members[0]))}", "", f"{facts(members[0])}. {LEGEND}.", ""]
        for section, group in groupby(members, key=lambda row: row.section):
            lines += [f"### {_escaped(section)}", "", *_markdown_table(list(group)), ""]
    return "\n".join(lines[:-1]) + "\n"


def _markdown_table(rows: Sequence[Row]) -> list[str]:
    trained = rows[0].trained
    header = (
        *("method", "sparsity", "parameters", "MACs", titled(rows[0].task, rows[0].metric), "vs dense", "p", "seeds"),
        *(("steps", "samples seen", "tuned", "converged") if trained else ()),
        *("flags", "config"),
    )
    cells = [
        (
            *(name(row), percent(row.sparsity)),
            *(reduced(row.nonzero, row.model_reduction), reduced(row.macs, row.macs_reduction)),
            estimate(row.value, row.low, row.high, 2),
            difference(row.delta, row.delta_low, row.delta_high, 2),
            "" if row.p is None else "<0.001" if row.p < 0.001 else fixed(row.p, 3),
            seeds(row, 2),
            *((str(row.steps), *_training(row)) if trained else ()),
            *(row.flags, row.config),
        )
        for row in rows
    ]
    rule = ["---" if i in (0, len(header) - 2, len(header) - 1) else "---:" for i in range(len(header))]
    return ["| " + " | ".join(map(_escaped, line)) + " |" for line in (header, rule, *cells)]


def _training(row: Row) -> tuple[str, str, str]:
    """What all training of the chain saw; of how many settings select chose; and the tick or cross."""
    return (count(row.samples_seen), str(row.n_tuned), "" if row.converged is None else _cell("", row.converged))


def _escaped(text: str) -> str:
    """A name in a cell: neither a bar nor a line break ends it, and what looks like an HTML tag is none."""
    return re.sub(r"<(?=[A-Za-z/!])", "&lt;", re.sub(r"[\x00-\x1f\x7f]+", " ", text).replace("|", "\\|"))


def subject(row: Row) -> str:
    """Whose rows these are: the model, the label of weights of one's own, whether it saw no images, and by whose rule
    its answers were read."""
    model = f"{row.model} ({row.label})" if row.label else row.model
    return ", ".join([model, *row.settings])


def facts(row: Row) -> str:
    """Which samples the numbers of a block are about."""
    clusters = f" in {row.clusters:,} clusters" if row.clusters < row.samples else ""
    return f"Split {row.split} (task version {row.task_version}): {row.samples:,} samples{clusters}"


def percent(fraction: float) -> str:
    return f"{fixed(100 * fraction, 1)}%"


def seeds(row: Row, digits: int) -> str:
    return str(row.seeds) if row.spread is None else f"{row.seeds} \u00b1{fixed(row.spread, digits)}"
