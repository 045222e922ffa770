"""`vlbench compare A B C`: rows of one board against one another, on the same samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..leaderboard.filters import FILTERS, Found, described, named, selected
from ..leaderboard.rows import Row
from ..leaderboard.scales import titled
from ..leaderboard.tables import difference as difference_of
from ..leaderboard.tables import estimate, fixed, name, p_value
from ..plugins.table import table
from ..records.record import Record, unpack_scores
from ..task import Task
from .paired import Difference, holm, of_corpus, of_means
from .rebuilt import clusters_of

CLAIMED = 0.05  # two-sided; half of it for a one-sided claim, as the 95 % interval has it
BLOCK = ("suite", "task", "model", "label", "split", "task_version", "split_digest", "weights_digest", "evaluation")


@dataclass(frozen=True)
class Pair:
    """Row `b` against row `a`, named before it. p, p_worse: adjusted over all pairs (Holm)."""

    a: Row
    b: Row
    change: Difference
    p: float
    p_worse: float | None
    higher: bool  # whether higher values of the metric are better

    @property
    def verdict(self) -> str:
        """Which row is better, where the adjusted p says that they differ."""
        if self.p > CLAIMED:
            return "not separated"
        return "better" if (self.change.delta > 0) is self.higher else "worse"

    @property
    def non_inferior(self) -> bool | None:
        return None if self.p_worse is None else self.p_worse <= CLAIMED / 2


def compare(names: Sequence[str], words: Mapping[str, str], runs: Path) -> tuple[list[Found], list[Pair]]:
    """The rows named, and every later one against every earlier one. Raises UserError for names that are of no row or
    of several, and for rows that must not be compared, saying why."""
    margin = _margin(words)
    rows = named(names, selected({k: v for k, v in words.items() if k in FILTERS}, runs)[0], runs)
    if len(rows) < 2:
        raise UserError("vlbench compare takes two rows or more: vlbench compare upop@0.5 magnitude@0.5 task=vqav2.")
    refuse_incomparable([row for row, _ in rows])
    task, clusters = _task(rows[0][1][0]), clusters_of(_with_clusters(rows))
    tables = {row.config: [_checked(record, len(clusters)) for record in records] for row, records in rows}
    higher = type(task).metrics.get(rows[0][0].metric, "higher") == "higher"
    pairs = [
        (a, b, _difference(task, tables[a.config], tables[b.config], clusters, margin, higher))
        for (a, _), (b, _) in combinations(rows, 2)
    ]
    adjusted = holm([d.p for *_, d in pairs])
    worse: Sequence[float | None] = [None] * len(pairs)
    if margin is not None:
        worse = holm([d.p_worse for *_, d in pairs if d.p_worse is not None])
    return rows, [Pair(a, b, d, p, w, higher) for (a, b, d), p, w in zip(pairs, adjusted, worse, strict=True)]


def _margin(words: Mapping[str, str]) -> float | None:
    if "margin" not in words:
        return None
    try:
        margin = float(words["margin"])
    except ValueError:
        margin = 0.0
    if not 0 < margin < 100:
        raise UserError(f"margin={words['margin']} should be percent points above 0, like margin=1.0.")
    return margin


def refuse_incomparable(rows: Sequence[Row]) -> None:
    """Raise UserError where two rows are not of one board, naming what differs."""
    for row in rows[1:]:
        differing = [name for name in BLOCK if getattr(rows[0], name) != getattr(row, name)]
        if differing:
            differences = ", ".join(f"{n} {getattr(rows[0], n)!r} and {getattr(row, n)!r}" for n in differing)
            raise UserError(
                f"these rows cannot be compared: {described(rows[0])}, and {described(row)}, are of other "
                f"samples, weights or settings ({differences}). Compare rows of one block of a leaderboard."
            )


def _task(record: Record) -> Task:
    cls: type[Task] = table("tasks").get(record.task).load()
    return cls(Path(), cls.Options())


def _with_clusters(rows: Sequence[Found]) -> Record:
    """A record that has clusters: all rows have the same, and those of schema 1 do not say."""
    every = [record for _, records in rows for record in records]
    return next((record for record in every if record.sample_clusters), every[0])


def _checked(record: Record, count: int) -> Any:
    scores = unpack_scores(record.scores)
    if len(scores) != count:
        raise UserError(f"the result of {record.cell} has {len(scores)} scores, others {count}: run it again.")
    return scores


def _difference(
    task: Task, a: Sequence[Any], b: Sequence[Any], clusters: Sequence[str], margin: float | None, higher: bool
) -> Difference:
    """b - a. Where lower is better the margin is that of the other side."""
    sign = 1.0 if higher else -1.0
    if task.corpus:
        comparison = of_corpus(a, b, clusters, lambda sums: sign * task.corpus_metric(sums), margin)
    else:
        first, second = ([sign * 100 * scores[:, 0] for scores in side] for side in (a, b))
        comparison = of_means(first, second, clusters, margin)
    if higher:
        return comparison
    low, high = (None if end is None else -end for end in (comparison.high, comparison.low))
    return comparison._replace(delta=-comparison.delta, low=low, high=high)


def print_comparison(names: Sequence[str], words: Mapping[str, str], runs: Path, *, as_json: bool) -> None:
    """The comparison in words, or as JSON."""
    rows, pairs = compare(names, words, runs)
    margin = _margin(words)
    print(json.dumps(_told(rows, pairs, margin), indent=1) if as_json else "\n".join(_lines(rows, pairs, margin)))


def _told(rows: Sequence[Found], pairs: Sequence[Pair], margin: float | None) -> dict[str, Any]:
    return {
        **{name: getattr(rows[0][0], name) for name in (*BLOCK, "metric", "samples", "clusters")},
        "margin": margin,
        "rows": [
            {"config": row.config, "row": described(row), "value": row.value, "seeds": row.seeds, "flags": row.flags,
             "cells": [record.cell for record in records]}
            for row, records in rows
        ],
        "pairs": [
            {"a": pair.a.config, "b": pair.b.config, **pair.change._asdict(), "p_holm": pair.p, "verdict": pair.verdict,
             "p_worse_holm": pair.p_worse, "non_inferior": pair.non_inferior}
            for pair in pairs
        ],
    }  # fmt: skip


def _lines(rows: Sequence[Found], pairs: Sequence[Pair], margin: float | None) -> list[str]:
    first = rows[0][0]
    grouped = f" in {first.clusters:,} clusters" if first.clusters < first.samples else ""
    metric = titled(first.task, first.metric)
    lines = [f"{first.suite} / {first.task} / {first.model}: {metric} on the same {first.samples:,} samples{grouped}"]
    letters = {row.config: chr(ord("A") + i) if i < 26 else f"R{i}" for i, (row, _) in enumerate(rows)}
    for row, _ in rows:
        seeds = "1 seed" if row.seeds == 1 else f"{row.seeds} seeds ±{fixed(row.spread or 0.0, 2)}"
        flags = f"  flagged {row.flags}" if row.flags else ""
        what = f"{name(row)}, {row.section}, {fixed(100 * row.sparsity, 1)}%"
        value = estimate(row.value, row.low, row.high, 2)
        lines.append(f"  {letters[row.config]}  {value}  {what}  ({row.config}, {seeds}){flags}")
    for pair in pairs:
        lines += ["", *_pair_lines(pair, letters, margin)]
    return [*lines, "", *_notes(rows, pairs, margin)]


def _pair_lines(pair: Pair, letters: Mapping[str, str], margin: float | None) -> list[str]:
    a, b, change = letters[pair.a.config], letters[pair.b.config], pair.change
    difference = difference_of(change.delta, change.low, change.high, 2)
    ends = "not separated" if pair.verdict == "not separated" else f"{b} is {pair.verdict}"
    lines = [f"{b} - {a}  {difference}  p {p_value(change.p)}, Holm {p_value(pair.p)} ({change.test}): {ends}"]
    if margin is not None and pair.p_worse is not None:
        shown = "is not worse than" if pair.non_inferior else "is not shown to be within the margin of"
        by = f" by {margin:g} or more" if pair.non_inferior else ""
        lines.append(f"       {b} {shown} {a}{by} (one-sided p {p_value(pair.p_worse)}, Holm)")
    return lines


def _notes(rows: Sequence[Found], pairs: Sequence[Pair], margin: float | None) -> list[str]:
    """What was done, and what a reader must not take for granted."""
    notes = [
        f"Intervals are 95 %, of each pair alone; p is adjusted over the {len(pairs)} "
        f"pair{'s' if len(pairs) > 1 else ''} (Holm), and a pair is separated at {CLAIMED:g} or below."
    ]
    if margin is not None:
        notes.append(f"Non-inferiority: margin {margin:g} points, one-sided, claimed at {CLAIMED / 2:g} or below.")
    if any(row.seeds > 1 for row, _ in rows):
        notes.append("A row of several seeds is their mean on every sample; their spread is in the interval.")
    alone = [row.config for row, records in rows if row.seeds == 1 and records[0].seed is not None]
    if alone:
        notes.append(f"One seed only: {', '.join(alone)}. What other seeds would give is not in its interval.")
    if len(counts := {row.samples_seen for row, _ in rows}) > 1:
        budgets = ", ".join(f"{row.config} {row.samples_seen:,}" for row, _ in rows)
        untrained = "untrained rows beside trained ones" if 0 in counts else "rows of unequal training"
        notes.append(f"These are {untrained} (samples seen: {budgets}): a difference is not the pruning's alone.")
    if rows[0][0].suite == "mini":
        notes.append("Mini ranks do not predict full ranks.")
    return notes
