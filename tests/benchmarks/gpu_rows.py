"""What the parts of `make gpu-check` share: rows of its table, and how much memory is taken."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from tests.benchmarks.common import Bench

WIDTHS = (32, 66, 26, 3)

Found = TypeVar("Found")


@dataclass(frozen=True)
class Row:
    """One line of the table. ok: None for what is told and not judged."""

    check: str
    measured: str
    wanted: str = "-"
    ok: bool | None = None

    def __str__(self) -> str:
        verdict = {True: "yes", False: "NO", None: "-"}[self.ok]
        cells = (self.check, self.measured, self.wanted, verdict)
        return "  ".join(f"{cell:{width}}" for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


def amount(bench: Bench, count: int) -> int:
    """So many samples, and of tiny models a handful."""
    return min(count, 4) if bench.tiny else count


def judged(bench: Bench, ok: bool) -> bool | None:
    """The verdict on a time: those of tiny models mean nothing."""
    return None if bench.tiny else ok


def failed(check: str, error: Exception) -> Row:
    """The row of an error, whose traceback goes to the other stream."""
    traceback.print_exception(error, file=sys.stderr)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return Row(check, text if len(text) <= WIDTHS[1] else text[: WIDTHS[1] - 3] + "...", "no error", False)


def bytes_held(bench: Bench) -> int:
    """Bytes of the GPU that tensors take."""
    return int(torch.cuda.memory_allocated(bench.device)) if bench.cuda else 0


def at_its_peak(bench: Bench, work: Callable[[], Found]) -> tuple[Found, int]:
    """What work() gives, and the most bytes that tensors took meanwhile."""
    if bench.cuda:
        torch.cuda.reset_peak_memory_stats(bench.device)
    found = work()
    return found, int(torch.cuda.max_memory_allocated(bench.device)) if bench.cuda else 0


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"
