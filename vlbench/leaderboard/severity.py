"""`vlbench table format=severity`: quality against the strength of what was perturbed, a row for each method.

The last column says what is kept: the mean over the strengths of the perturbed value, in percent of the clean one. A
method that keeps less than the dense model has cost robustness beyond the quality that it cost on clean data.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from ..disk.storage import digest
from ..errors import UserError
from ..records.record import Record
from .rows import Row
from .scales import titled
from .tables import estimate, fixed, name

WORDS = ("perturb", "perturb_seed")  # of an evaluation: what the rows of one table differ in
Found = tuple[Row, list[Record]]


def severity_text(rows: Sequence[Found]) -> str:
    """A table in Markdown for each model on a task and each kind of perturbation. Raises UserError where nothing was
    perturbed."""
    tables: defaultdict[tuple[str, ...], dict[str, dict[str, Row]]] = defaultdict(lambda: defaultdict(dict))
    clean: dict[str, Row] = {}
    for row, records in rows:
        evaluation = records[0].evaluation
        key = _configuration(records[0])
        if not evaluation.get("perturb"):
            clean[key] = row
            continue
        kind, strength = _divided(str(evaluation["perturb"]))
        seed = f", perturb_seed={evaluation['perturb_seed']}" if evaluation.get("perturb_seed") else ""
        tables[row.suite, row.task, row.model, row.label, kind + seed][key][strength] = row
    if not tables:
        raise UserError("no row was evaluated on perturbed samples: run cells with perturb=, like perturb=jpeg:3.")
    return "\n".join(_table(title, methods, clean) for title, methods in sorted(tables.items()))


def _divided(text: str) -> tuple[str, str]:
    """typos:0.1+jpeg:3 -> what changes, "typos+jpeg", and how much, "0.1+3"."""
    parts = [part.split(":") for part in text.split("+")]
    return "+".join(kind for kind, _ in parts), "+".join(strength for _, strength in parts)


def _configuration(record: Record) -> str:
    """Equal for the rows of one method that differ in what was perturbed alone. The digest of the split is left out,
    which in the mini suite is of the options, too."""
    whole: dict[str, Any] = record.configuration()
    evaluation = {key: value for key, value in whole["evaluation"].items() if key not in WORDS}
    return digest({**whole, "task": whole["task"][:3], "evaluation": evaluation})


def _table(title: Sequence[str], methods: Mapping[str, Mapping[str, Row]], clean: Mapping[str, Row]) -> str:
    strengths = sorted({strength for rows in methods.values() for strength in rows}, key=_numbers)
    first = next(iter(next(iter(methods.values())).values()))
    heading = " / ".join(word for word in title if word)
    lines = [f"### {heading}, {titled(first.task, first.metric)}", ""]
    lines.append("| method | sparsity | clean | " + " | ".join(strengths) + " | kept |")
    lines.append("|---|---" + "|---:" * (len(strengths) + 2) + "|")
    for key, rows in methods.items():
        row = next(iter(rows.values()))
        base = clean.get(key)
        cells = [_value(base), *(_value(rows.get(strength)) for strength in strengths)]
        kept = _kept(base, [rows[strength] for strength in strengths if strength in rows], len(strengths))
        lines.append(f"| {name(row)} | {row.sparsity_target or 'none'} | " + " | ".join([*cells, kept]) + " |")
    return "\n".join([*lines, ""])


def _numbers(strength: str) -> tuple[float, ...]:
    return tuple(float(part) for part in strength.split("+"))


def _value(row: Row | None) -> str:
    return "not run" if row is None else estimate(row.value, row.low, row.high, 1)


def _kept(clean: Row | None, perturbed: Sequence[Row], strengths: int) -> str:
    """Nothing where a cell of the row was not run, or a clean value of zero leaves nothing to keep."""
    if clean is None or len(perturbed) < strengths or not clean.value:
        return ""
    return f"{fixed(100 * fmean(row.value for row in perturbed) / clean.value, 1)} %"
