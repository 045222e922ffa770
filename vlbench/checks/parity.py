"""`vlbench check model=NAME`: the dense model's scores here against those its card says were published.

The guard for loading code: weights under the wrong key, another crop or another split do not fail, they score less.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..disk.storage import refuse_unwritable
from ..errors import UserError, did_you_mean
from ..machine.ui import Screen
from ..plugins.entry import Entry
from ..plugins.table import table
from ..records.flags import Stated, agrees
from ..records.record import Interval, Record, unpack_scores
from ..records.statistics import interval
from ..run.runner import Runner

KEYS = ("model", "limit", "precision", "batch_size", "checkpoint", "preprocessing")
Settings = tuple[tuple[str, str], ...]
SAME = 1e-6  # percent points between a metric and the mean of a column of scores


@dataclass(frozen=True)
class Comparison:
    """One published number and ours. low, high: 95 % interval of ours; own: whether it is this metric's own, or that
    of the split's primary metric."""

    what: str
    published: float
    value: float
    low: float
    high: float
    own: bool

    @property
    def agrees(self) -> bool:
        return agrees(self.published, self.low, self.high)

    def sentence(self) -> str:
        gap = self.value - self.published
        verdict = "agrees" if self.agrees else f"DIFFERS by {gap:+.2f}"
        note = "" if self.own else " (the interval is that of the primary metric)"
        return (
            f"{self.what}: {self.value:.2f} [{self.low:.2f}, {self.high:.2f}], published {self.published:g}: "
            f"{verdict}{note}"
        )


def check_model(given: Mapping[str, str], runs: Path, screen: Screen) -> Iterator[tuple[str, bool]]:
    """Run the dense cells that the card has published numbers of. Yields lines, and whether each is as it should be."""
    wrong = [key for key in given if key not in KEYS]
    if wrong:
        raise UserError(f"{wrong[0]}= is not known here. {did_you_mean(wrong[0], KEYS)}")
    entry = table("models").get(given["model"])
    published = entry.facts.get("published") or {}
    if not published:
        yield f"{entry.name} has no published numbers{_why_none(entry)}: there is nothing to compare with.", True
        return
    refuse_unwritable(runs)
    for (task, split, settings), numbers in _by_cell(published).items():
        if reason := _not_here(task, split):
            yield f"{task}/{split}: {reason}", True
            continue
        suite = str(entry.facts.get("suite", "full"))
        words = {**given, "task": task, "split": split, "suite": suite, **dict(settings)}
        record = Runner(runs, screen).run(words)
        if not record.complete:
            yield f"{task}/{split}: incomplete ({', '.join(record.flags)}): mend the data first", False
        comparisons = [
            _compared(record, metric, number) for metric, number in numbers.items() if metric in record.metrics
        ]
        for comparison in comparisons:
            yield comparison.sentence(), comparison.agrees
        for metric in numbers.keys() - record.metrics.keys():
            why = record.unmeasured.get(metric, f"task={task} has no such metric")
            yield f"{task}/{split}/{metric}: not measured ({why})", True
        if not all(comparison.agrees for comparison in comparisons):
            yield from ((f"  {line}", True) for line in _causes(entry, record, words))


def _why_none(entry: Entry) -> str:
    return " (it is of the mini suite, whose weights were trained here)" if entry.facts.get("suite") == "mini" else ""


def _by_cell(published: Mapping[str, float]) -> dict[tuple[str, str, Settings], dict[str, float]]:
    """Published numbers as a card has them -> (task, split, settings) -> metric -> number."""
    by_cell: dict[tuple[str, str, Settings], dict[str, float]] = defaultdict(dict)
    for key, number in published.items():
        stated = Stated.of(key)
        by_cell[stated.task, stated.split, stated.settings][stated.metric] = number
    return by_cell


def _not_here(task: str, split: str) -> str:
    """Why a split is not run; empty where it can be."""
    if task not in table("tasks").entries:
        return f"there is no task {task} here"
    cls = table("tasks").get(task).load()
    if split not in cls.report_splits():
        return f"task={task} does not report on this split"
    if not cls(Path(), cls.Options()).labelled(split):
        return (
            "only its server knows the answers; not run. Make the file to send with "
            f"`vlbench run suite=full task={task} split={split} model=...`"
        )
    return ""


def _compared(record: Record, metric: str, published: float) -> Comparison:
    value = record.metrics[metric]
    spread, own = record.interval, True
    if metric != record.metric:
        interval = _interval_of(record, value)
        spread, own = interval or record.interval, interval is not None
    shift = 0.0 if own else value - spread.value  # its width alone is borrowed
    what = f"{record.task}/{record.split}/{metric}"
    return Comparison(what, published, value, spread.low + shift, spread.high + shift, own)


def _interval_of(record: Record, value: float) -> Interval | None:
    """Of a secondary metric that is the mean of a column of the scores, as top-5 is. Clusters are not in a record: the
    interval is widened as the primary metric's is by them."""
    columns = 100 * unpack_scores(record.scores).T
    for column in columns[1:]:
        if abs(float(column.mean()) - value) < SAME:
            plain = interval(column, [""] * len(column))
            primary = interval(columns[0], [""] * len(column))
            design = record.interval.se / primary.se if primary.se else 1.0
            half = max(1.0, design) * (plain.high - plain.low) / 2
            return plain.model_copy(update={"low": plain.value - half, "high": plain.value + half})
    return None


def _causes(entry: Entry, record: Record, words: Mapping[str, str]) -> list[str]:
    """What usually makes a score differ, likeliest first, with what was used here."""
    image = {"interpolation": "bicubic", "resize": "squash", **entry.facts["image"]}
    crop = f", crop_pct {image['crop_pct']}" if image["resize"] == "crop" and "crop_pct" in image else ""
    causes = [
        "likely causes, in this order:",
        f"preprocessing: here {image['size']} px, {image['resize']}{crop}, {image['interpolation']}",
        f"split: here {record.split}, {record.samples:,} samples (`vlbench data verify task={record.task}`)",
        f"checkpoint: here {words.get('checkpoint') or _checkpoint(entry)}, sha256 {record.weights_digest[:12]}",
        f"precision: here {record.evaluation['precision']}",
    ]
    if f"{record.task}/{record.split}" in entry.facts.get("trained_on", ()):
        causes.append("contamination: the card says that these weights were trained on this split")
    if "limit" in words:
        causes.append(f"limit: only the first {record.samples} samples were evaluated, which are no random draw")
    return causes


def _checkpoint(entry: Entry) -> str:
    return f"{entry.facts['checkpoint']} at revision {entry.facts.get('revision', 'main')}"
