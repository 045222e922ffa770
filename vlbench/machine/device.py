"""The device that a process computes on: whatever `torch.accelerator` offers, or the CPU.

`--device` names one; it is kept in the environment, so that the processes that a sweep starts compute on the same.
Without a name it is the accelerator of this torch where one is present. Apple's is taken only by name: it has no
float64, in which statistics and gates keep their sums.

Everything here goes through `torch.get_device_module`, which every backend registers: CUDA, ROCm (named cuda), XPU,
MPS, and one that is simulated in the tests. A backend that lacks a function (MPS tells no free memory) answers None.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:
    import torch

VARIABLE = "VLBENCH_DEVICE"
HELP = "cpu, cuda, cuda:1, xpu, mps ...; by default the accelerator where there is one"
ONLY_BY_NAME = ("mps",)
PINNED = ("cuda", "xpu")  # kinds that copy from and to pinned host memory by themselves
_WORD = re.compile(r"([a-z][a-z0-9_]*)(?::(\d+))?")


def ask_for(name: str) -> None:
    """Compute on the device of that name from now on, in this process and in those that it starts. Nothing is changed
    by an empty name. Whether it is there is asked when it is used: printing a record needs no torch. Raises UserError
    for a word that is no device's name."""
    if not name:
        return
    if not _WORD.fullmatch(name):
        raise UserError(f"--device {name} should be a kind of device, or one of them with its number: cpu, cuda:1.")
    os.environ[VARIABLE] = name


def computing_device() -> torch.device:
    """The one that was asked for, or the accelerator where there is one, or the CPU. Raises UserError where it is not
    there, with what is."""
    return device_named(os.environ.get(VARIABLE, ""))


def device_named(name: str) -> torch.device:
    """The device of that name, or the default one for an empty name. Raises UserError where it is not there."""
    import torch

    accelerator = _accelerator()
    if not name:
        usable = accelerator is not None and accelerator.type not in ONLY_BY_NAME
        return accelerator if accelerator is not None and usable else torch.device("cpu")
    match = _WORD.fullmatch(name)
    kind, number = match.groups() if match else (name, None)
    if kind == "cpu" and number in (None, "0"):
        return torch.device("cpu")
    if accelerator is None or kind != accelerator.type:
        raise UserError(f"--device {name}: torch finds no such device here; there is {_here()}.")
    if number is None:
        return accelerator
    if int(number) >= torch.accelerator.device_count():
        raise UserError(f"--device {name}: there is no device of that number here; there is {_here()}.")
    torch.accelerator.set_device_index(int(number))
    return torch.device(kind, int(number))


def take_number(number: int) -> None:
    """Make one of several accelerators the current one of this process."""
    import torch

    torch.accelerator.set_device_index(number)


def count() -> int:
    """How many accelerators the device asked for may be: 0 where it is the CPU, 1 where it has a number."""
    import torch

    device = computing_device()
    if device.type == "cpu":
        return 0
    return 1 if device.index is not None else int(torch.accelerator.device_count())


def refuse_precision(precision: str) -> None:
    """Raise UserError where the device computes nothing in the precision of a cell."""
    if precision != "bf16":
        return  # and torch is not imported
    device = computing_device()
    if not has_bf16(device):
        raise UserError(
            f"precision=bf16: {product(device)} does not compute in bfloat16. Use precision=fp32, or another --device."
        )


def has_bf16(device: torch.device) -> bool:
    """Whether products in bfloat16 are computed there, and not in another type behind the scenes."""
    import torch

    if device.type == "cpu":
        return True
    asked = getattr(torch.get_device_module(device), "is_bf16_supported", None)
    if asked is not None:
        return bool(asked(including_emulation=False) if device.type == "cuda" else asked())
    try:
        source = torch.ones(1, 1, device=device, dtype=torch.bfloat16)
        return bool((source @ source).item() == 1)
    except (RuntimeError, TypeError):
        return False


def product(device: torch.device) -> str:
    """The device as its vendor calls it."""
    import torch

    if device.type != "cpu":
        named = getattr(torch.get_device_module(device), "get_device_name", None)
        return str(named(device)) if named is not None else str(device)
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


# What a backend may lack --------------------------------------------------------------------------------------------


def free_bytes(device: torch.device) -> int | None:
    """Bytes that an accelerator can still give. None for a CPU, and for a backend that does not tell."""
    memory = _call(device, "mem_get_info", device)
    return None if memory is None else int(memory[0])


def allocated_bytes(device: torch.device, *, peak: bool = False) -> int | None:
    """Bytes of tensors on an accelerator, now or at most since `forget_peak`. None where it does not tell."""
    allocated = _call(device, "max_memory_allocated" if peak else "memory_allocated", device)
    return None if allocated is None else int(allocated)


def forget_peak(device: torch.device) -> None:
    """Let the peak of allocated memory begin anew."""
    _call(device, "reset_peak_memory_stats", device)


def empty_cache(device: torch.device) -> None:
    """Give back what torch holds and does not use: the next allocation may be of another size."""
    _call(device, "empty_cache")


def synchronise(device: torch.device) -> None:
    """Wait until an accelerator has done all that it was given."""
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The host tensor in memory that the device copies from by itself, where it has that."""
    return tensor.pin_memory() if device.type in PINNED else tensor


def begin_fetch(tensors: Sequence[torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
    """Begin to copy tensors to the host, behind the work that their device has; the function that is returned waits for
    them and gives them. What the device is given in between does not wait, and is not waited for."""
    import torch

    device = next((source.device for source in tensors if source.device.type != "cpu"), None)
    if device is None:
        return lambda: list(tensors)
    pin = device.type in PINNED
    copies = [torch.empty(source.shape, dtype=source.dtype, pin_memory=pin) for source in tensors]
    for copy, source in zip(copies, tensors, strict=True):
        copy.copy_(source, non_blocking=True)
    event = torch.Event(device) if pin else None
    if event is not None:
        event.record()

    def fetched() -> list[torch.Tensor]:
        if event is not None:
            event.synchronize()
        else:  # its copies end with everything else that it was given
            synchronise(device)
        return copies

    return fetched


def _call(device: torch.device, name: str, *arguments: Any) -> Any:
    import torch

    if device.type == "cpu":
        return None
    function = getattr(torch.get_device_module(device), name, None)
    return None if function is None else function(*arguments)


def _accelerator() -> torch.device | None:
    import torch

    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


def _here() -> str:
    """All devices of this machine: "cpu, cuda:0, cuda:1"."""
    import torch

    accelerator = _accelerator()
    if accelerator is None:
        return "cpu"
    return ", ".join(["cpu", *(f"{accelerator.type}:{n}" for n in range(torch.accelerator.device_count()))])
