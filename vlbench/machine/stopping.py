"""SIGTERM with a grace period: what is being trained is saved at its next step, then the process ends with STOPPED.

Clusters send SIGTERM some seconds before they take a machine away, and start the same command again elsewhere. What
keeps no state of its own is left at once: predictions are on disk batch by batch, and calibration block by block.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED = 128 + signal.SIGTERM  # 143, the exit code of a command that is to be given again as it was


class Stopped(KeyboardInterrupt):
    """The order to stop has come. An interrupt: nobody on the way takes it for a failure of the cell."""


class _Order:
    """Whether the order has come, and how many loops are to be left at a step of theirs only."""

    def __init__(self) -> None:
        self.come, self.loops = False, 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.come = True
        if not self.loops:
            raise Stopped


_ORDER = _Order()


@contextmanager
def stoppable(*signals: signal.Signals) -> Iterator[None]:
    """Inside, one of `signals` raises Stopped in the main thread: at once, or where a loop is at work, at its next
    step. In another thread (of Ray, say), which can hear no signals, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in signals}
    listen(*signals)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _ORDER.come = False


def listen(*signals: signal.Signals) -> None:
    """stoppable() to the end of a process. To be called in its main thread."""
    for number in signals:
        signal.signal(number, _ORDER)


@contextmanager
def step_by_step() -> Iterator[None]:
    """For a loop that asks ordered() after each of its steps, saves its state where that is so, and then leaves by
    raising Stopped."""
    _ORDER.loops += 1
    try:
        yield
    finally:
        _ORDER.loops -= 1


def ordered() -> bool:
    """Whether the order to stop has come."""
    return _ORDER.come
