"""What runs the cells of a sweep: processes of this machine (local.py), Ray (ray_engine.py) or Slurm (slurm.py), all
behind one interface."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

FAILED = "failed: "  # begins the last line of a log whose cell failed


@dataclass(frozen=True)
class Work:
    """One cell to run. baseline: the dense cell of what `words` describe, not that cell itself.

    cell: the identity that was planned. Who runs it makes sure that the words still mean this cell: an edited method or
    other data would make another one.
    """

    cell: str
    words: Mapping[str, str]
    baseline: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a cell ended. reason: one sentence where it failed. seconds: on the worker."""

    cell: str
    state: Literal["done", "failed", "upload"]
    reason: str = ""
    seconds: float = 0.0


class Executor(Protocol):
    """Runs cells somewhere, several at a time, into one folder of runs that all share.

    Leases keep two workers off one cell, and a killed cell resumes: an executor needs to know nothing of either.
    """

    def submit(self, works: Iterable[Work]) -> None:
        """Queue cells; also while outcomes() is being read."""

    def outcomes(self) -> Iterator[Outcome]:
        """Each outcome as it comes, until nothing that was submitted is left."""

    def running(self) -> list[str]:
        """The cells at work now."""

    def close(self) -> None:
        """Stop what runs, and wait until it has stopped."""


def log_file(runs: Path, cell: str) -> Path:
    """What a cell printed in a sweep, its earlier attempts included."""
    return runs / "logs" / f"{cell}.log"


def incomplete(runs: Path, cell: str, flags: Sequence[str]) -> str:
    """Why a cell that has a result is no success."""
    where = runs / cell / "predictions.jsonl"
    return f"incomplete: {', '.join(flags)}. {where} names them; mend the data, delete that folder and run again"
