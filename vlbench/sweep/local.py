"""Worker processes on this machine, one a GPU or as many as --jobs says.

A worker runs many cells, so that torch is imported once; it gets them as JSON lines on its standard input and answers
with one line each. What a cell prints goes to its log. A worker that dies costs its own cell an attempt, and no other.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue

from ..machine.device import VARIABLE, computing_device, count
from .executor import Outcome, Work
from .process import GRACE, WorkerProcess, request_of, try_again


class LocalExecutor:
    """`jobs` workers. devices: the one of each, in turn, as `visible_devices` names them; none without a GPU."""

    def __init__(
        self,
        runs: Path,
        jobs: int,
        devices: Sequence[str] = (),
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        self.runs, self.jobs, self.devices, self.tell = runs, jobs, devices, tell
        self._todo: SimpleQueue[Work | None] = SimpleQueue()
        self._done: SimpleQueue[Outcome] = SimpleQueue()
        self._left = 0
        self._slots: list[_Slot] = []

    def submit(self, works: Iterable[Work]) -> None:
        for work in works:
            self._left += 1
            self._todo.put(work)
            if len(self._slots) < self.jobs:
                number = len(self._slots)
                device = self.devices[number % len(self.devices)] if self.devices else None
                self._slots.append(_Slot(self, _environment(self.jobs, device)))

    def outcomes(self) -> Iterator[Outcome]:
        while self._left:
            outcome = self._done.get()
            self._left -= 1
            yield outcome

    def running(self) -> list[str]:
        return [work.cell for slot in self._slots if (work := slot.work) is not None]

    def close(self) -> None:
        for slot in self._slots:
            slot.stop()
        for _ in self._slots:
            self._todo.put(None)
        end = time.monotonic() + GRACE
        for slot in self._slots:
            slot.join(max(0.0, end - time.monotonic()))


class _Slot:
    """A thread with at most one worker process: hands it cells."""

    def __init__(self, executor: LocalExecutor, environment: Mapping[str, str]) -> None:
        self.executor, self.worker = executor, WorkerProcess(environment)
        self.work: Work | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped = True
        self.worker.stop()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)
        self.worker.end(0.0 if self._thread.is_alive() else GRACE)

    def _loop(self) -> None:
        while (work := self.executor._todo.get()) is not None and not self._stopped:
            self.work = work
            self.executor.tell()
            start = time.monotonic()
            try:
                outcome = try_again(self.worker, request_of(work, self.executor.runs))
            except Exception as error:
                outcome = Outcome(work.cell, "failed", f"{type(error).__name__}: {error}", time.monotonic() - start)
            self.work = None
            self.executor._done.put(outcome)
        self.worker.stop()


def _environment(jobs: int, device: str | None) -> dict[str, str]:
    """Workers share the cores: more threads than cores are slower than one. What the user set stays."""
    threads = max(1, cores() // jobs)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    if device is not None:
        environment[VARIABLE if ":" in device else "CUDA_VISIBLE_DEVICES"] = device
    return environment


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_devices() -> list[str]:
    """The devices that cells take in turn: GPUs as CUDA_VISIBLE_DEVICES names them, others as --device does. None where
    the CPU or one device is asked for: every worker then has that in its environment."""
    asked = os.environ.get(VARIABLE, "")
    if asked:
        computing_device()  # one that is not there is told before any cell begins
    if asked == "cpu" or ":" in asked:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and asked in ("", "cuda"):
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    kind = computing_device().type
    return [str(number) if kind == "cuda" else f"{kind}:{number}" for number in range(count())]
