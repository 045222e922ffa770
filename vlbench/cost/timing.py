"""Latency, throughput and memory of one model on this device, on the capability's stated sample (stated.py).

The path is that of evaluation: encode, then the capability's method, from images that lie on the device to predictions
in Python. Host time is part of it, as it is of what a user waits for; decoding files is not.
"""

from __future__ import annotations

import contextlib
import platform
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..capability import Batch
from ..errors import RunFailed
from ..machine.device import allocated_bytes, empty_cache, forget_peak, product, synchronise
from ..machine.memory import free_memory
from ..model import Model
from .sample import infer, stated

GAIN = 1.05  # a doubled batch that is not so much faster a sample is the last one
LARGEST = 4096  # samples a batch
SHARE = (
    0.4  # of the free memory that a batch may take before a doubled one is not tried (a CPU kills, and tells nobody)
)

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class How:
    """What a measured cost is measured with, besides the model."""

    device: torch.device
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False

    @property
    def key(self) -> dict[str, Any]:
        """What two costs must share to be compared."""
        return {
            "device": product(self.device),
            "torch": torch.__version__,
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "compiled": self.compile,
        }


@dataclass(frozen=True)
class Patience:
    """How often one thing is timed: for `seconds`, but `least` times, and at most `most`."""

    least: int
    most: int
    seconds: float


WARM = Patience(3, 20, 1.0)
LATENCY = Patience(20, 200, 5.0)
BATCH = Patience(5, 30, 2.0)


def measure(model: Model, capability: str, how: How, report: Report = lambda what, done, total: None) -> dict[str, Any]:
    """The costs of the model as it is, for cost.json. It is moved to the device and, where asked for, compiled."""
    model.net.to(how.device).eval()
    if how.compile:
        _compile(model)
    floor = _memory(how.device)
    times, peak = _timed(model, capability, 1, how, LATENCY)
    report("latency", 1, 1)
    saturated = {**_saturated(model, capability, how, floor, report)}
    return {
        **how.key,
        "latency_ms": {
            "p50": _ms(times, 50), "p95": _ms(times, 95), "q25": _ms(times, 25), "q75": _ms(times, 75), "n": len(times),
        },
        "throughput": saturated,
        "memory_mb": {"batch_1": peak, "saturated": saturated.pop("memory_mb")},
        "memory_is": "of the process" if allocated_bytes(how.device) is None else "allocated",
    }  # fmt: skip


def _ms(times: list[float], percentile: int) -> float:
    return round(1e3 * float(np.percentile(times, percentile)), 4)


def _saturated(model: Model, capability: str, how: How, floor: float | None, report: Report) -> dict[str, Any]:
    """Samples a second at the batch from which on doubling gains nothing. floor: memory in use before any batch."""
    best: dict[str, Any] = {}
    size, ended = 1, "size"
    while size <= LARGEST:
        try:
            times, peak = _timed(model, capability, size, how, BATCH)
        except RunFailed:
            ended = "memory"
            break
        median = float(np.median(times))
        report(f"throughput, batches of {size}", size, size)
        gained = not best or size / median >= best["per_second"] * GAIN
        if not best or size / median > best["per_second"]:
            best = {
                "per_second": size / median, "batch": size, "n": len(times), "memory_mb": peak,
                "q25": size / float(np.percentile(times, 75)), "q75": size / float(np.percentile(times, 25)),
            }  # fmt: skip
        if not gained:
            ended = "gain"
            break
        if _would_not_fit(how.device, floor, peak):
            ended = "memory"
            break
        size *= 2
    if not best:
        raise RunFailed("one sample does not fit into memory: use a smaller model or --precision bf16.")
    return {**{k: round(v, 4) if isinstance(v, float) else v for k, v in best.items()}, "ended_by": ended}


def _timed(model: Model, capability: str, count: int, how: How, patience: Patience) -> tuple[list[float], float | None]:
    """Seconds of each pass of one batch, and the peak of memory in MB. Raises RunFailed where it does not fit."""
    with _refusing_when_full(how.device):
        batch = stated(capability).make(model, count, False)
        step = _step(model, capability, batch, how)
        _repeated(step, WARM)
        _forget_peak(how.device)
        return _repeated(step, patience), _memory(how.device, peak=True)


def _step(model: Model, capability: str, batch: Batch, how: How) -> Callable[[], None]:
    """One pass, from an idle device to an idle device."""

    def step() -> None:
        with (
            torch.inference_mode(),
            torch.autocast(how.device.type, torch.bfloat16, enabled=how.precision == "bf16"),
        ):
            infer(model, capability, batch)
        synchronise(how.device)

    return step


def _repeated(step: Callable[[], None], patience: Patience) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + patience.seconds
    while len(times) < patience.least or (len(times) < patience.most and time.perf_counter() < end):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times


@contextmanager
def _refusing_when_full(device: torch.device) -> Iterator[None]:
    """RunFailed for an error of memory, without the traceback that would keep the failed batch."""
    full = False
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        full = True
    except RuntimeError as error:
        if not any(text in str(error) for text in ("can't allocate memory", "out of memory", "ALLOC_FAILED")):
            raise
        full = True
    if full:
        empty_cache(device)
        raise RunFailed("out of memory")


def _compile(model: Model) -> None:
    """Each block by itself: alike ones are compiled once, and what lies between them stays as it is."""
    for tower in model.structure().towers:
        for block in tower.blocks:
            model.net.get_submodule(block.path).compile()


# Memory ------------------------------------------------------------------------------------------------------------


def resident_mb() -> float | None:
    """MB of this process that are in memory now. None where the system does not tell."""
    return _memory(torch.device("cpu"))


def _memory(device: torch.device, *, peak: bool = False) -> float | None:
    """MB in use: allocated on a GPU, of the whole process on a CPU. None where the system does not tell."""
    if (count := allocated_bytes(device, peak=peak)) is not None:
        return round(count / 1e6, 1)
    with contextlib.suppress(OSError, IndexError, ValueError):
        field = "VmHWM:" if peak else "VmRSS:"
        lines = Path("/proc/self/status").read_text().splitlines()
        return round(next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6, 1)
    if not peak:
        return None
    unit = 1 if platform.system() == "Darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def _forget_peak(device: torch.device) -> None:
    """Let the peak begin anew. Where the system does not allow it, it is that of the whole process so far."""
    if allocated_bytes(device) is not None:
        forget_peak(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _would_not_fit(device: torch.device, floor: float | None, peak: float | None) -> bool:
    """Whether a batch twice as large would come near the end of a CPU's memory. A GPU says so by itself."""
    if device.type != "cpu" or floor is None or peak is None:
        return False
    return peak - floor > SHARE * (free_memory(device) / 1e6 + peak - floor)
