"""What a task says of its metrics: which way is better, and how headings write them."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from ..plugins.table import table

if TYPE_CHECKING:
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
    title = _said(task, "titles", {}).get(metric, metric)
    return title if isinstance(title, str) else metric


@cache
def bounds_of(task: str) -> tuple[float, float] | None:
    """The scale of a task's primary metric; None of a task that is not installed here."""
    if task not in table("tasks").entries:
        return None
    least, largest = _said(task, "bounds", (0.0, 100.0))
    return float(least), float(largest)


@cache
def _higher(task: str, metric: str) -> bool:
    return bool(_said(task, "metrics", {}).get(metric, "higher") == "higher")


def _said(task: str, name: str, otherwise: Any) -> Any:
    """What a task says of its metrics. A built-in is imported for it; a file of a workspace is not, to print a table:
    its literals are read, and what it computes is not known here."""
    entry = table("tasks").entries.get(task)
    if entry is None:
        return otherwise
    value = getattr(entry.load(), name) if entry.built_in else entry.facts.get(name, otherwise)
    return value if isinstance(value, type(otherwise)) or entry.built_in else otherwise
