"""What a task says of its metrics: which way is better, and how headings write them."""

from __future__ import annotations

from functools import cache

from ..plugins.table import table
from .rows import Row


def higher(row: Row) -> bool:
    """Whether higher values of the row's metric are better; of a task that is not installed here, they are."""
    return _higher(row.task, row.metric)


def verdict(row: Row) -> str:
    """ "good" or "bad" of a row whose difference to the dense model has an interval that excludes zero, else ""."""
    if row.delta_low is None or row.delta_high is None or row.delta_low <= 0 <= row.delta_high:
        return ""
    return "good" if (row.delta_low > 0) is higher(row) else "bad"


@cache
def titled(task: str, metric: str) -> str:
    """mIoU for miou, for people to read; of a task that is not installed here, or of its own words, the key."""
    entries = table("tasks").entries
    return entries[task].load().titles.get(metric, metric) if task in entries else metric


@cache
def _higher(task: str, metric: str) -> bool:
    entries = table("tasks").entries
    return task not in entries or entries[task].load().metrics.get(metric, "higher") == "higher"
