"""A worker process (worker.py) as its parent sees it: ask it for cells one after the other, learn why it died.

Every engine runs cells through it, on whatever machine: a crash of libraries, or the kernel's hunt for memory, ends
this process and not the engine's own. Its input is a pipe: where the parent is killed, it ends too.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .executor import FAILED, Outcome, Work, log_file

GRACE = 20.0  # seconds that a stopped worker has to let go of its cell; then it is killed, which resumes as well
# -P: a file of the user's folder (random.py ...) must not stand in for a module.
ARGUMENTS: tuple[str, ...] = ("-P", "-m", "vlbench.sweep.worker")
STOPPED = "stopped; the same command goes on from here"
# A worker that dies says nothing of the cell: a node goes, memory runs out for a neighbour's sake. So its cell is tried
# again, so many times in all. What the cell itself says (a mistake, an exception) it would say again: told at once.
ATTEMPTS = 3


class WorkerDied(Exception):  # noqa: N818
    """The process ended without an answer. The text says by what."""


class WorkerProcess:
    """At most one process, started with the first cell and again after a death."""

    def __init__(self, environment: Mapping[str, str], arguments: tuple[str, ...] = ()) -> None:
        self.environment, self.arguments = environment, arguments or ARGUMENTS
        self._process: subprocess.Popen[str] | None = None
        self.stopped = False
        self._lock = threading.RLock()  # between the start of a process and stop(), which a signal may call

    def run(self, request: Mapping[str, Any]) -> Outcome:
        """One attempt at a cell. Raises WorkerDied."""
        start, cell = time.monotonic(), str(request["cell"])
        process = self._start(request)
        if process is None:
            return Outcome(cell, "failed", STOPPED)
        answer = ""
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError, ValueError):  # it died, or stop() has closed its input
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        seconds = time.monotonic() - start
        if not answer:
            why = self._bury(process)
            if self.stopped:
                return Outcome(cell, "failed", STOPPED, seconds)
            raise WorkerDied(why)
        reply: dict[str, Any] = json.loads(answer)
        return Outcome(cell, reply["state"], reply["reason"], seconds)

    def stop(self) -> None:
        """Close its input: it leaves its cell at once. For another thread, or a signal's handler."""
        with self._lock:
            self.stopped = True
            if self._process is not None and self._process.stdin is not None:
                with contextlib.suppress(OSError, ValueError, RuntimeError):  # RuntimeError: we interrupt a write
                    self._process.stdin.close()

    def end(self, seconds: float = GRACE) -> None:
        """Wait until it has ended, and kill it where it takes longer."""
        self.stop()
        process = self._process
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            if process.poll() is None:
                process.kill()
            process.wait()

    def _start(self, request: Mapping[str, Any]) -> subprocess.Popen[str] | None:
        """The process, started where there is none. Until its first cell it writes to that cell's log."""
        with self._lock:
            if self.stopped:
                return None
            if self._process is None:
                log = Path(request["log"])
                log.parent.mkdir(parents=True, exist_ok=True)
                with log.open("a", encoding="utf-8") as stream:
                    self._process = subprocess.Popen(
                        (sys.executable, *self.arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                        stderr=stream, text=True, env=dict(self.environment), cwd=request["folder"],
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
        if code == -signal.SIGKILL:
            return "its process was killed by signal 9, as a machine without free memory does"
        return f"its process ended by {f'signal {-code}' if code < 0 else f'exit code {code}'} without a word"


def request_of(work: Work, runs: Path) -> dict[str, Any]:
    """What a worker is asked, in JSON. Paths are absolute: on another machine the current folder is another."""
    request = {"cell": work.cell, "words": dict(work.words), "baseline": work.baseline}
    log = log_file(runs.absolute(), work.cell)
    return {**request, "runs": str(runs.absolute()), "log": str(log), "folder": str(Path.cwd())}


def try_again(worker: WorkerProcess, request: Mapping[str, Any]) -> Outcome:
    """The cell's outcome, after up to ATTEMPTS workers have died of it."""
    why = ""
    for _ in range(ATTEMPTS):
        try:
            return worker.run(request)
        except WorkerDied as death:
            why = str(death)
    return gave_up(request, why)


def gave_up(request: Mapping[str, Any], why: str) -> Outcome:
    """The outcome of a cell whose workers died ATTEMPTS times. Its log says so too, which `vlbench status` reads."""
    reason = f"{why}, in each of {ATTEMPTS} attempts"
    note_failure(Path(request["log"]), reason)
    return Outcome(str(request["cell"]), "failed", reason)


def note_failure(log: Path, reason: str) -> None:
    """End a log with why its cell failed, where the worker could not."""
    with contextlib.suppress(OSError), log.open("a", encoding="utf-8") as stream:
        stream.write(f"{FAILED}{reason}\n")


def travelling() -> dict[str, str]:
    """Variables of this machine that a worker on another one needs to find the same data and options."""
    return {name: value for name, value in os.environ.items() if name.startswith("VLBENCH_")}


def refuse_elsewhere(request: Mapping[str, Any]) -> str:
    """Why this machine cannot run the cell, in one sentence; empty where it can."""
    for folder in (request["folder"], request["runs"]):
        if not Path(folder).is_dir():
            return f"{socket.gethostname()} has no folder {folder}: all machines must share it"
    return ""
