"""Cells as Slurm jobs, in arrays, through submitit.

A job hands its cell to a worker process (process.py) and writes how it ended into a small JSON file, which is all that
is read here: submitit's own results are pickles. Before its time is up, or when the machine is taken for another job,
Slurm sends a signal; the cell is let go and the job asks to be queued again, and the cell resumes in it.

A job that ends without that file is noticed by Slurm's accounting (sacct, which submitit asks); on a cluster that keeps
none by the queue (squeue); and where that does not answer either, by the cell's lease, which gives no sign of life.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..disk import lease
from ..disk.storage import write_json
from ..errors import UserError
from . import process
from .executor import Outcome, Work
from .process import ATTEMPTS, WorkerProcess, gave_up, refuse_elsewhere, request_of, travelling, try_again

LOOK = 2.0  # seconds between two looks for outcomes: a glance into a folder, Slurm itself is asked less and less often
MINUTES = 240  # of a job, where --slurm time= does not say: a longer cell takes several
TIMEOUTS = 100  # jobs that one cell may fill: one that never gets anywhere must end
ARRAY = 1000  # jobs of an array: Slurm's own default allows 1001
SETTLES = 60.0  # seconds that a network file system may take to show what a job wrote before its end
QUEUE = 20.0  # seconds between two looks into the queue, less than SETTLES: what was submitted after one is in the next
PATIENCE = 120.0  # seconds in which Slurm says, or does, what comes after SIGTERM
NEEDED = "--engine slurm needs submitit: pip install 'vlbench[slurm]'"


class SlurmExecutor:
    """parameters: of sbatch, as --slurm says them (partition, time, gpus_per_node ...). jobs: at most so many of an
    array at a time. Raises UserError where there is no submitit, no Slurm, or Slurm would not know a parameter."""

    def __init__(
        self,
        runs: Path,
        parameters: Mapping[str, str],
        *,
        jobs: int | None = None,
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        self.runs, self.tell = runs.absolute(), tell
        self.folder = self.runs / "logs" / "slurm"  # what submitit writes, and the outcomes
        self._executor = _connect(self.folder, sbatch_parameters(parameters, jobs))
        self._open: dict[str, _Submitted] = {}  # by the outcome's file name
        self._queue = Queue()

    def submit(self, works: Iterable[Work]) -> None:
        """Each call is an array, or several where it has more cells than one may."""
        all_ = [_Submitted(work) for work in works]
        for first in range(0, len(all_), ARRAY):
            self._submit(all_[first : first + ARRAY])

    def _submit(self, all_: list[_Submitted]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        cells = [self._job_of(submitted) for submitted in all_]
        try:
            with self._executor.batch():
                jobs = [self._executor.submit(cell) for cell in cells]
        except Exception as error:  # submitit's FailedJobError, with sbatch's own words
            raise UserError(f"sbatch refused the cells: {_last_line(error)}. Change --slurm.") from error
        for submitted, job, cell in zip(all_, jobs, cells, strict=True):
            submitted.job = job
            self._open[cell.outcome] = submitted

    def _job_of(self, submitted: _Submitted) -> CellJob:
        outcome = self.folder / f"outcome-{secrets.token_hex(8)}.json"
        return CellJob(request_of(submitted.work, self.runs), travelling(), process.ARGUMENTS, str(outcome))

    def outcomes(self) -> Iterator[Outcome]:
        while self._open:
            ended = [
                (file, submitted, outcome)
                for file, submitted in self._open.items()
                if (outcome := self._outcome(file, submitted))
            ]
            for file, submitted, outcome in ended:
                del self._open[file]
                if outcome is not LOST:
                    yield outcome
                elif submitted.attempts < ATTEMPTS:
                    self._submit([_Submitted(submitted.work, submitted.attempts + 1)])
                else:
                    yield gave_up(request_of(submitted.work, self.runs), _why(submitted.job))
            if not ended:
                self.tell()
                time.sleep(LOOK)

    def _outcome(self, file: str, submitted: _Submitted) -> Outcome | None:
        """How the cell ended; LOST where its job is gone without a word; None while it waits or runs."""
        with contextlib.suppress(OSError):
            return Outcome(**json.loads(Path(file).read_text(encoding="utf-8")))
        if not self._ended(submitted):
            submitted.gone = 0.0
            return None
        submitted.gone = submitted.gone or time.monotonic()
        return LOST if time.monotonic() - submitted.gone > SETTLES else None

    def _ended(self, submitted: _Submitted) -> bool:
        """Whether the job is no more, by the first of accounting, queue and lease that knows of it."""
        if submitted.job.done():
            return True
        if submitted.job.get_info(mode="cache").get("State"):
            return False
        queued = self._queue.holds(submitted.job.job_id)
        if queued is None:
            return _silent(self.runs / submitted.work.cell, submitted.at)
        # Accounting may be slower than the queue: it is asked once more, and what it says then counts.
        return not queued and (not submitted.job.get_info(mode="force").get("State") or submitted.job.done())

    def running(self) -> list[str]:
        return [
            submitted.work.cell
            for submitted in self._open.values()
            if submitted.job.get_info(mode="cache").get("State") == "RUNNING"
            or lease.held(self.runs / submitted.work.cell)
        ]

    def close(self) -> None:
        """Cancel what has not ended. It lets its cell go, and Slurm kills it a while later."""
        for submitted in self._open.values():
            submitted.job.cancel(check=False)
        for file in self.folder.glob("outcome-*.json"):
            with contextlib.suppress(OSError):
                file.unlink()


@dataclass
class _Submitted:
    work: Work
    attempts: int = 1
    job: Any = None
    gone: float = 0.0  # when its job was first seen to have ended
    at: float = field(default_factory=time.time)


LOST = Outcome("", "failed", "its job ended without an outcome")


class Queue:
    """The jobs of this user that wait or run, as squeue lists them."""

    def __init__(self) -> None:
        self._ids: frozenset[str] | None = None
        self._asked = -QUEUE

    def holds(self, job: str) -> bool | None:
        """None where squeue does not answer."""
        if time.monotonic() - self._asked >= QUEUE:
            self._ids, self._asked = _queued(), time.monotonic()
        return None if self._ids is None else job in self._ids


def _queued() -> frozenset[str] | None:
    words = ["squeue", "--noheader", "--array", "--format=%i", f"--user={os.getuid()}"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=QUEUE, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return frozenset(done.stdout.split())


def _silent(folder: Path, since: float) -> bool:
    """Whether somebody began the cell after that time, and gives no sign of life any more."""
    try:
        begun = (folder / "lease.json").stat().st_mtime > since
    except OSError:
        return False
    return begun and lease.held(folder) is None


def _why(job: Any) -> str:
    state = str(job.get_info(mode="cache").get("State") or "unknown")
    return f"Slurm's job {job.job_id} ended without an outcome (state {state}; {job.paths.stderr})"


# On the nodes ------------------------------------------------------------------------------------------------------


@dataclass
class CellJob:
    """What a job runs. submitit calls `checkpoint` when the job is about to be stopped, and queues it again."""

    request: dict[str, Any]
    variables: dict[str, str]
    arguments: tuple[str, ...]
    outcome: str
    _worker: WorkerProcess | None = field(default=None, repr=False)

    def __call__(self) -> None:
        if why := refuse_elsewhere(self.request):
            outcome = Outcome(self.request["cell"], "failed", why)
        else:
            worker = self._worker = WorkerProcess({**os.environ, **self.variables}, self.arguments)
            signal.signal(signal.SIGTERM, lambda *_: worker.stop())  # the machine is wanted: let the cell go
            outcome = try_again(worker, self.request)
            if worker.stopped:
                return time.sleep(PATIENCE)  # until submitit's signal, which has us queued again, or the end
            worker.end()
        return write_json(Path(self.outcome), asdict(outcome))

    def checkpoint(self) -> Any:
        """Let the cell go, whose files have its state, and be queued again."""
        from submitit.helpers import DelayedSubmission

        if self._worker is not None:
            self._worker.end()
        return DelayedSubmission(CellJob(self.request, self.variables, self.arguments, self.outcome))


# The cluster -------------------------------------------------------------------------------------------------------


def _connect(folder: Path, parameters: Mapping[str, Any]) -> Any:
    """submitit's executor. Raises UserError."""
    try:
        from submitit import SlurmExecutor as Submitit
    except ImportError:
        raise UserError(NEEDED) from None
    try:
        made = Submitit(folder, max_num_timeout=TIMEOUTS)
    except RuntimeError:
        raise UserError(
            "--engine slurm finds no Slurm here (no srun): run it on a login node of the cluster."
        ) from None
    try:
        made.update_parameters(**parameters)
    except (ValueError, TypeError) as error:
        raise UserError(f"--slurm: {_last_line(error)}.") from None
    return made


def sbatch_parameters(given: Mapping[str, str], jobs: int | None) -> dict[str, Any]:
    """--slurm's words as submitit takes them; those that it does not know go to sbatch as they are."""
    try:
        from submitit.slurm.slurm import _get_default_parameters
    except ImportError:
        raise UserError(NEEDED) from None

    options = set(_get_default_parameters()) - {"setup", "teardown", "additional_parameters", "srun_args", "use_srun"}
    parameters: dict[str, Any] = {"job_name": "vlbench", "time": MINUTES}
    others: dict[str, str] = {}
    for key, text in given.items():
        name = key.replace("-", "_")
        if name in ("array", "output", "error", "open_mode", "requeue", "signal"):
            raise UserError(f"--slurm {key}={text}: vlbench says that itself.")
        if name == "time":
            parameters[name] = _minutes(text)
        elif name in options:
            parameters[name] = int(text) if text.isdigit() else text
        else:
            others[key] = text
    if jobs is not None:
        parameters["array_parallelism"] = jobs
    # A node that is lost has its jobs queued again by Slurm, where the cluster does not forbid it.
    return {**parameters, "additional_parameters": {"requeue": True, **others}}


def _minutes(text: str) -> int:
    """Slurm's time, MINUTES or [DAYS-]HOURS:MINUTES[:SECONDS], in minutes."""
    days, dash, clock = text.rpartition("-")
    parts = clock.split(":")
    numbers = [days or "0", *parts]
    if not all(part.isdigit() for part in numbers) or len(parts) > 3 or (dash and not days):
        raise UserError(f"--slurm time={text} should be minutes, H:MM:SS or D-HH:MM:SS.")
    values = [int(part) for part in parts]
    if dash:
        hours, minutes = values[0], values[1] if len(values) > 1 else 0
    elif len(values) == 3:
        hours, minutes = values[0], values[1]
    else:
        hours, minutes = 0, values[0]  # MINUTES or MINUTES:SECONDS, as sbatch reads them
    total = int(days or 0) * 1440 + hours * 60 + minutes
    if not total:
        raise UserError(f"--slurm time={text} is less than a minute.")
    return total


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")
