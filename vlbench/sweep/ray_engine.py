"""Cells as Ray tasks: this machine's cores and GPUs, or those of a standing cluster (--address).

Ray places the cells, and runs those of a lost node on another one; results lie in the folder of runs, which all nodes
share. A task hands its cell to a worker process of its own (process.py): a crash of that is no crash of Ray's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..disk import lease
from ..errors import UserError
from . import process
from .executor import Outcome, Work
from .process import ATTEMPTS, GRACE, WorkerDied, WorkerProcess, gave_up, refuse_elsewhere, request_of, travelling

HERE = "local"  # Ray's word for a cluster of this machine alone, started now and ended with us
LOOK = 2.0  # seconds between two looks at what runs
AHEAD = 2  # cells that Ray has for each that it can run at once: none of its places is ever empty
HEARS = 0.2  # seconds between two moments in which a task can be cancelled
REACHES = 5.0  # seconds to wait for a cluster's port, where its address is given
STORE = 80 * 2**20  # bytes of Ray's object store here: cells exchange a few words, and /dev/shm is small in containers


class RayExecutor:
    """gpus: what a cell takes, by default one where the cluster has any; a part of one lets small cells share. jobs: at
    most so many cells at a time, by default as many as fit. Raises UserError where there is no Ray, no cluster at
    `address`, or no node with that many GPUs."""

    def __init__(
        self,
        runs: Path,
        *,
        address: str = "",
        gpus: float | None = None,
        jobs: int | None = None,
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        self.runs, self.tell = runs, tell
        self.ray = _connect(address or os.environ.get("RAY_ADDRESS") or HERE, jobs)
        try:
            nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
            self.gpus = _gpus_per_cell(nodes, gpus)
            self.cpus = _cpus_per_cell(nodes, self.gpus)
            self.slots = _slots(nodes, self.cpus, self.gpus)
        except BaseException:
            self.ray.shutdown()
            raise
        self.most = jobs or AHEAD * self.slots
        self._todo: deque[Work] = deque()
        self._open: dict[Any, Work] = {}
        self._task = self.ray.remote(
            num_cpus=self.cpus, num_gpus=self.gpus, max_retries=ATTEMPTS - 1, retry_exceptions=[WorkerDied]
        )(_attempt)  # fmt: skip

    def submit(self, works: Iterable[Work]) -> None:
        self.runs.mkdir(parents=True, exist_ok=True)  # by it a node sees whether it shares our folders
        self._todo.extend(works)
        self._feed()

    def _feed(self) -> None:
        while self._todo and len(self._open) < self.most:
            work = self._todo.popleft()
            ref = self._task.remote(request_of(work, self.runs), travelling(), process.ARGUMENTS)
            self._open[ref] = work

    def outcomes(self) -> Iterator[Outcome]:
        while self._open:
            ended, _ = self.ray.wait(list(self._open), timeout=LOOK)
            for ref in ended:
                outcome = self._outcome(ref, self._open.pop(ref))
                self._feed()
                yield outcome
            if not ended:
                self.tell()

    def _outcome(self, ref: Any, work: Work) -> Outcome:
        try:
            return Outcome(**self.ray.get(ref))
        except WorkerDied as death:
            return gave_up(request_of(work, self.runs), str(getattr(death, "cause", death)))
        except self.ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or ["no text"]
            return gave_up(request_of(work, self.runs), f"Ray lost it ({type(error).__name__}: {lines[0]})")

    def running(self) -> list[str]:
        return [work.cell for work in self._open.values() if lease.held(self.runs / work.cell)]

    def close(self) -> None:
        """What runs lets its cell go; a cluster that was started here ends, another one only forgets us."""
        self._todo.clear()
        for ref in reversed(self._open):  # those that wait first: or they would take the places of the others
            with contextlib.suppress(self.ray.exceptions.RayError):
                self.ray.cancel(ref)
        if self._open:
            self.ray.wait(list(self._open), num_returns=len(self._open), timeout=GRACE)
        self.ray.shutdown()


# On the nodes ------------------------------------------------------------------------------------------------------

_worker: WorkerProcess | None = None  # of this Ray process: without GPUs it runs many cells, and imports torch once


def _attempt(request: dict[str, Any], variables: Mapping[str, str], arguments: tuple[str, ...]) -> dict[str, Any]:
    """One attempt at a cell, on the node where Ray put it. Raises WorkerDied, which Ray answers with another."""
    global _worker
    if why := refuse_elsewhere(request):
        return asdict(Outcome(request["cell"], "failed", why))
    if _worker is None:
        _worker = WorkerProcess({**os.environ, **variables}, arguments)
    try:
        return asdict(_interruptible(_worker, request))
    except WorkerDied as death:
        raise WorkerDied(f"{death} ({socket.gethostname()})") from None
    except BaseException:  # cancelled: a KeyboardInterrupt
        _worker = None
        raise
    finally:
        if os.environ.get("CUDA_VISIBLE_DEVICES") and _worker is not None:  # its memory is the next cell's
            _worker.end()
            _worker = None


def _interruptible(worker: WorkerProcess, request: Mapping[str, Any]) -> Outcome:
    """The attempt, while this thread looks up now and then: Ray's order to cancel wakes nobody who waits in a read."""
    with ThreadPoolExecutor(1) as thread:
        attempt = thread.submit(worker.run, request)
        try:
            while not attempt.done():
                wait([attempt], HEARS)
        except BaseException:
            worker.end()
            raise
        return attempt.result()


# The cluster -------------------------------------------------------------------------------------------------------


def _connect(address: str, jobs: int | None) -> Any:
    """The module ray, connected. Raises UserError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody
    try:
        import ray
    except ImportError:
        raise UserError("--engine ray needs Ray: pip install 'vlbench[ray]'") from None
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == HERE:
        quiet |= {"include_dashboard": False, "object_store_memory": STORE}
        if jobs is not None:
            quiet["num_cpus"] = max(jobs, os.cpu_count() or 1)
    else:
        _refuse_unreachable(address)
    with _own_signals():
        try:
            ray.init(address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            reason = (str(error).strip().splitlines() or ["no text"])[0]
            raise UserError(f"there is no Ray cluster at --address {address} ({reason}). {REMEDY}") from None
    return ray


REMEDY = "Start one with `ray start --head` there, or leave --address out: one machine needs nothing started by hand."


def _refuse_unreachable(address: str) -> None:
    """Raise UserError where nothing listens at HOST:PORT: Ray itself tries for a minute, and then aborts."""
    if address == "auto" or address.startswith("ray://"):
        return
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise UserError(f"--address {address} should be auto or HOST:PORT, like head-node:6379.")
    try:
        socket.create_connection((host, int(port)), timeout=REACHES).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"there is no Ray cluster at --address {address} ({error}). {REMEDY}") from None


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """ray.init() puts its own handler in the place of the sweep's, which stops the cells in good order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _gpus_per_cell(nodes: list[Mapping[str, float]], asked: float | None) -> float:
    """Raises UserError where no node can give a cell what it needs."""
    most = max((node.get("GPU", 0.0) for node in nodes), default=0.0)
    gpus = (1.0 if most else 0.0) if asked is None else asked
    if gpus > 1 and gpus != int(gpus):
        raise UserError(f"--gpus-per-cell {gpus:g} should be a whole number, or a part of one GPU.")
    if gpus > most:
        have = f"no node of the cluster has more than {most:g}" if most else "the cluster has none"
        need = f"{gpus:g} GPU{'s' * (gpus > 1)}"
        raise UserError(f"a cell needs {need} and {have}: give a smaller --gpus-per-cell, or another --address.")
    return gpus


def _cpus_per_cell(nodes: list[Mapping[str, float]], gpus: float) -> float:
    """One core without GPUs; with them, a cell's share of the cores of the node that has fewest for each GPU."""
    shares = [node.get("CPU", 0.0) / node["GPU"] * gpus for node in nodes if gpus and node.get("GPU", 0.0) >= gpus]
    share = min(shares, default=1.0)
    return float(int(share)) if share >= 1 else share


def _slots(nodes: list[Mapping[str, float]], cpus: float, gpus: float) -> int:
    """Cells that the cluster can run at once."""
    fit = [min(n.get("CPU", 0.0) // cpus if cpus else 1e9, n.get("GPU", 0.0) // gpus if gpus else 1e9) for n in nodes]
    return max(1, int(sum(fit)))
