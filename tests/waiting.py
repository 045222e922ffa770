"""Waiting for what happens in other threads and processes, on machines of any speed."""

from __future__ import annotations

import time
from collections.abc import Callable

LIMIT = 300.0  # seconds; no test needs them: they end one that would wait for ever


def until(what: Callable[[], object]) -> None:
    """Return once `what()` is true. Fails after LIMIT."""
    end = time.monotonic() + LIMIT
    while not what():
        assert time.monotonic() < end, "what was waited for never came"
        time.sleep(0.01)
