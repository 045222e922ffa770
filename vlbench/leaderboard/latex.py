"""Rows -> LaTeX: one booktabs tabular a block, for papers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

from .rows import Row
from .scales import titled
from .tables import count, difference, facts, fixed, name, subject

HEADER = ("Method", "Sparsity", "Parameters", "MACs", "{metric}", "95\\,\\% interval", "$\\Delta$ dense", "Seeds")
ALIGNED = "lrrrrrrr"
MARK = "$^\\dagger$"  # of a row with flags, which the table's last lines tell
NOTE = (
    "% Needs \\usepackage{booktabs}. +-: standard deviation over seeds. Bold: best of a pattern at one sparsity.\n"
    "% Delta: paired difference to the dense model with its 95 % interval."
)
ESCAPED = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "\\textless{}",
    ">": "\\textgreater{}", "[": "{[}", "*": "{*}", "|": "\\textbar{}", '"': "\\textquotedbl{}",
}  # fmt: skip


def escaped(text: str) -> str:
    """Any text as LaTeX prints it; line breaks and other control characters become blanks."""
    return "".join(ESCAPED.get(c, c) for c in re.sub(r"[\x00-\x1f\x7f]+", " ", text))


def latex(rows: Sequence[Row], higher: Callable[[Row], bool] = lambda row: True) -> str:
    """All rows, a tabular a block, a group of lines a section. higher: whether higher values of a row's metric are
    better. Without rows: an empty text."""
    parts = [NOTE, ""] if rows else []
    for _, block in groupby(rows, key=lambda row: row.block):
        parts += [*_tabular(list(block), higher), ""]
    return "\n".join(parts)


def _tabular(rows: Sequence[Row], higher: Callable[[Row], bool]) -> Iterator[str]:
    first, best = rows[0], _best(rows, higher)
    comment = f"{first.suite} / {first.task} / {subject(first)}. {facts(first)}."
    yield "% " + re.sub(r"[\x00-\x1f\x7f]+", " ", comment)
    yield f"\\begin{{tabular}}{{{ALIGNED}}}"
    yield "\\toprule"
    yield _line(cell.replace("{metric}", escaped(titled(first.task, first.metric))) for cell in HEADER)
    for section, group in groupby(rows, key=lambda row: row.section):
        yield "\\midrule"
        if section != "dense":
            yield f"\\multicolumn{{{len(HEADER)}}}{{l}}{{\\textit{{{escaped(section)}}}}} \\\\"
        for row in group:
            yield _line(_cells(row, row.config in best))
    yield "\\bottomrule"
    for note in dict.fromkeys(f"{name(row)}: {row.flags.replace(';', '; ')}" for row in rows if row.flags):
        yield f"\\multicolumn{{{len(HEADER)}}}{{l}}{{\\footnotesize {MARK} {escaped(note)}}} \\\\"
    yield "\\end{tabular}"


def _line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + " \\\\"


def _cells(row: Row, best: bool) -> Iterator[str]:
    value = fixed(row.value, 2)
    yield escaped(name(row)) + (MARK if row.flags else "")
    yield f"{fixed(100 * row.sparsity, 1)}\\,\\%"
    yield count(row.nonzero)
    yield count(row.macs) or "--"
    spread = "" if row.spread is None else f" $\\pm$ {fixed(row.spread, 2)}"
    yield (f"\\textbf{{{value}}}" if best else value) + spread
    yield "--" if row.low is None or row.high is None else f"[{fixed(row.low, 2)}, {fixed(row.high, 2)}]"
    delta = difference(row.delta, row.delta_low, row.delta_high, 2)
    yield delta.replace("-", "$-$").replace("+", "$+$") or "--"
    yield str(row.seeds)


def _best(rows: Sequence[Row], higher: Callable[[Row], bool]) -> set[str]:
    """The `config` of the best row of each section and target, where there are two rows or more; of all that print
    alike."""
    flags: set[str] = set()
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.section, row.sparsity_target), []).append(row)
    for group in groups.values():
        if len(group) > 1:
            top = (max if higher(group[0]) else min)(row.value for row in group)
            flags |= {row.config for row in group if fixed(row.value, 2) == fixed(top, 2)}
    return flags
