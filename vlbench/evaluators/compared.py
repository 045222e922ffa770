"""`vlbench import DENSE PRUNED ...`: other harnesses' logs, compared sample by sample with the first of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..comparison.paired import holm, of_means
from ..errors import UserError
from ..leaderboard.tables import p_value
from ..records.statistics import Array
from .logs import Log, in_order_of, read_log


@dataclass(frozen=True)
class Against:
    """A log beside the first one. value, delta, low, high: in percent where all scores are fractions, else as they are.
    p: adjusted over all logs (Holm). kept, lost, gained: samples right in both, in the first alone, in this one alone,
    where all scores are 0 or 1; else None."""

    log: str
    metric: str
    value: float
    delta: float
    low: float | None
    high: float | None
    p: float
    test: str
    kept: int | None
    lost: int | None
    gained: int | None


def compare_logs(files: Sequence[Path], metric: str = "", cluster: str = "") -> tuple[Log, float, list[Against]]:
    """The first log, its mean, and every other beside it. Raises UserError as `read_log` does, and for one file."""
    if len(files) < 2:
        raise UserError("vlbench import takes two logs or more of the same samples, the dense model's first.")
    first, *others = [read_log(file, metric, cluster) for file in files]
    others = [in_order_of(log, first) for log in others]
    if named := [log for log in others if log.metric != first.metric]:
        raise UserError(f"{first.file} holds {first.metric} and {named[0].file} {named[0].metric}: name one: --metric.")
    whole = np.concatenate([first.scores, *(log.scores for log in others)])
    scale = 100.0 if bool(((whole >= 0) & (whole <= 1)).all()) else 1.0
    binary = bool(np.isin(whole, (0.0, 1.0)).all())
    changes = [of_means([first.scores * scale], [log.scores * scale], first.clusters, None) for log in others]
    adjusted = holm([change.p for change in changes])
    rows = [
        Against(
            str(log.file), log.metric, float(log.scores.mean()) * scale, change.delta, change.low, change.high, p,
            change.test, *(_answers(first.scores, log.scores) if binary else (None, None, None)),
        )
        for log, change, p in zip(others, changes, adjusted, strict=True)
    ]  # fmt: skip
    return first, float(first.scores.mean()) * scale, rows


def _answers(first: Array, second: Array) -> tuple[int, int, int]:
    """(kept, lost, gained)."""
    a, b = first > 0, second > 0
    return int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum())


def print_logs(files: Sequence[Path], metric: str, cluster: str, *, as_json: bool) -> None:
    first, value, rows = compare_logs(files, metric, cluster)
    if as_json:
        head = {"log": str(first.file), "metric": first.metric, "value": value, "samples": len(first.ids)}
        print(json.dumps({"first": head, "others": [asdict(row) for row in rows]}, indent=1))
        return
    clusters = len(set(first.clusters))
    print(f"{first.metric} of {len(first.ids):,} samples in {clusters:,} clusters; differences to {first.file}")
    print(f"{value:10.2f}  {first.file}")
    for row in rows:
        interval = "" if row.low is None or row.high is None else f" [{row.low:+.2f}, {row.high:+.2f}]"
        answers = "" if row.kept is None else f"; kept {row.kept:,}, lost {row.lost:,}, gained {row.gained:,}"
        print(f"{row.value:10.2f}  {row.log}: {row.delta:+.2f}{interval}, p {p_value(row.p)} ({row.test}){answers}")
