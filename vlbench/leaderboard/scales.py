"""What a task says of its metrics: which way is better, how headings write them, and their scale."""

from __future__ import annotations

from functools import cache
from typing import Any

from ..plugins.table import table


@cache
def titled(task: str, metric: str) -> str:
    """mIoU for miou, for people to read; of a task that is not installed here, or of its own words, the key."""
    title = _declared(task, "titles", {}).get(metric, metric)
    return title if isinstance(title, str) else metric


@cache
def bounds_of(task: str) -> tuple[float, float] | None:
    """The scale of a task's primary metric; None of a task that is not installed here."""
    if task not in table("tasks").entries:
        return None
    least, largest = _declared(task, "bounds", (0.0, 100.0))
    return float(least), float(largest)


@cache
def is_higher(task: str, metric: str) -> bool:
    """Of a task that is not installed here, higher values are better."""
    return bool(_declared(task, "metrics", {}).get(metric, "higher") == "higher")


def _declared(task: str, name: str, otherwise: Any) -> Any:
    """What a task says of its metrics. A built-in is imported for it; a file of a workspace is not, to print a table:
    its literals are read, and what it computes is not known here."""
    entry = table("tasks").entries.get(task)
    if entry is None:
        return otherwise
    value = getattr(entry.load(), name) if entry.built_in else entry.facts.get(name, otherwise)
    return value if isinstance(value, type(otherwise)) or entry.built_in else otherwise
