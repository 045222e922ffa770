"""Memory that is left, and what a second model beside the first one takes of it."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections import defaultdict
from pathlib import Path

import torch
from torch import nn

from ..errors import UserError
from .device import free_bytes

# glibc's mallopt: free memory at the heap's end that goes back to the system (none), and blocks that never lie in the
# heap. With a gigabyte at its end, too much for BLIP-base's gradients, its AdamW step took 0.3 s longer.
TRIM_THRESHOLD, MMAP_THRESHOLD = (-1, -1), (-3, 256 << 20)


def keep_heap() -> None:
    """Keep what a step has freed for the next one. glibc gives it back to the system, which hands it out again page by
    page: 20,000 faults and a seventh of a training step of a mini model (0.42 s to 0.36 s of a core). MALLOC_*
    variables of the user's own win."""
    if not any(name.startswith("MALLOC_") for name in os.environ):
        with contextlib.suppress(OSError, AttributeError):  # another C library
            mallopt = ctypes.CDLL("libc.so.6").mallopt
            for option, value in (TRIM_THRESHOLD, MMAP_THRESHOLD):
                mallopt(option, value)


def return_heap() -> None:
    """Give the system what `keep_heap` kept, when a cell is done: the next one of this process may need less."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def free_memory(device: torch.device) -> int:
    """Bytes that a GPU, or the system, can still give."""
    if (free := free_bytes(device)) is not None:
        return free
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def refuse_second_copy(net: nn.Module, what: str) -> None:
    """Raise UserError where the parameters of `net` do not fit a second time on the devices where they are. what:
    wants that copy, for the sentence. Activations come on top, so that what passes here may still not fit."""
    needed: dict[torch.device, int] = defaultdict(int)
    for parameter in net.parameters():
        needed[parameter.device] += parameter.numel() * parameter.element_size()
    for device, size in needed.items():
        if size > (free := free_memory(device)):
            raise UserError(
                f"{what} needs the dense model beside the pruned one, {size / 1e9:.3g} GB more, and {device} has "
                f"{free / 1e9:.3g} GB left: use loss=task, or a machine with more memory."
            )
