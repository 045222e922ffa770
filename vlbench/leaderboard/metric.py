"""Whether a row is better, and than what."""

from __future__ import annotations

from .rows import Row
from .scales import is_higher


def higher(row: Row) -> bool:
    """Whether higher values of the row's metric are better; of a task that is not installed here, they are."""
    return is_higher(row.task, row.metric)


def verdict(row: Row) -> str:
    """ "good" or "bad" of a row whose difference to the dense model has an interval that excludes zero, else ""."""
    if row.delta_low is None or row.delta_high is None or row.delta_low <= 0 <= row.delta_high:
        return ""
    return "good" if (row.delta_low > 0) is higher(row) else "bad"
