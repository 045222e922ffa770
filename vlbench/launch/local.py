"""Worker processes on this machine, one a GPU or as many as --jobs says.

A worker runs many cells, so that torch is imported once; it gets them as JSON lines on its standard input and answers
with one line each. What a cell prints goes to its log. A worker that dies fails the cell it had, and no other.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from .executor import Outcome, Work, log_file

GRACE = 20.0  # seconds that a stopped worker has to let go of its cell; then it is killed, which resumes as well
# -P: a file of the user's folder (random.py ...) must not stand in for a module.
COMMAND = (sys.executable, "-P", "-m", "vlbench.launch.worker")


class LocalExecutor:
    """`jobs` workers. devices: what CUDA_VISIBLE_DEVICES says in each, in turn; none on a machine without GPUs."""

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
    """A thread with at most one worker process: hands it cells, and starts another where it died."""

    def __init__(self, executor: LocalExecutor, environment: Mapping[str, str]) -> None:
        self.executor, self.environment = executor, environment
        self.work: Work | None = None
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False
        self._lock = threading.Lock()  # between the start of a process and stop()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the worker's input: it leaves its cell at once, as it does where this process is killed."""
        with self._lock:
            self._stopped = True
            if self._process is not None and self._process.stdin is not None:
                with contextlib.suppress(OSError):
                    self._process.stdin.close()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                if self._thread.is_alive():
                    self._process.kill()
            self._process.wait()

    def _loop(self) -> None:
        while (work := self.executor._todo.get()) is not None and not self._stopped:
            self.work = work
            self.executor.tell()
            start = time.monotonic()
            try:
                outcome = self._run(work)
            except Exception as error:
                outcome = Outcome(work.cell, "failed", f"{type(error).__name__}: {error}", time.monotonic() - start)
            self.work = None
            self.executor._done.put(outcome)
        process = self._process
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()

    def _run(self, work: Work) -> Outcome:
        start = time.monotonic()
        log = log_file(self.executor.runs, work.cell)
        process = self._start(log)
        if process is None:
            return Outcome(work.cell, "failed", "stopped before it began")
        told = {"cell": work.cell, "words": dict(work.words), "baseline": work.baseline}
        request = json.dumps({**told, "runs": str(self.executor.runs), "log": str(log)})
        answer = ""
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError, ValueError):  # it died, or stop() has closed its input
            process.stdin.write(request + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        seconds = time.monotonic() - start
        if not answer:
            return Outcome(work.cell, "failed", self._bury(process), seconds)
        found: dict[str, Any] = json.loads(answer)
        return Outcome(work.cell, found["state"], found["reason"], seconds)

    def _start(self, log: Path) -> subprocess.Popen[str] | None:
        """The worker, started where there is none. Until its first cell it writes to that cell's log."""
        with self._lock:
            if self._stopped:
                return None
            if self._process is None:
                log.parent.mkdir(parents=True, exist_ok=True)
                with log.open("a", encoding="utf-8") as stream:
                    self._process = subprocess.Popen(
                        COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, text=True,
                        env=dict(self.environment),
                        start_new_session=True,  # Ctrl-C is for us: we tell the workers
                    )  # fmt: skip
            return self._process

    def _bury(self, process: subprocess.Popen[str]) -> str:
        """Why there is no answer, once the process has ended. The next cell gets a new one."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        if process.poll() is None:
            process.kill()
        code = process.wait()
        with self._lock:
            self._process = None
            if self._stopped:
                return "stopped; the same command goes on from here"
        if code == -signal.SIGKILL:
            return "its process was killed by signal 9, as a machine without free memory does"
        return f"its process ended by {f'signal {-code}' if code < 0 else f'exit code {code}'} without a word"


def _environment(jobs: int, device: str | None) -> dict[str, str]:
    """Workers share the cores: more threads than cores are slower than one. What the user set stays."""
    threads = max(1, cores() // jobs)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    return environment


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_devices() -> list[str]:
    """The GPUs, as CUDA_VISIBLE_DEVICES names them."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [name.strip() for name in told.split(",") if name.strip() not in ("", "-1")]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
