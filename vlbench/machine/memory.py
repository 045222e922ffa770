"""Memory that is left, and what a second model beside the first one takes of it."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from bisect import bisect
from collections import defaultdict
from pathlib import Path

import torch
from torch import nn

from ..errors import UserError
from .device import free_bytes

# glibc's mallopt: free memory at the heap's end that goes back to the system (none), and blocks that never lie in the
# heap. With a gigabyte at its end, too much for BLIP-base's gradients, its AdamW step took 0.3 s longer.
TRIM_THRESHOLD, MMAP_THRESHOLD = (-1, -1), (-3, 256 << 20)
LARGE = 2**28  # bytes from which memory is worth a detour
# Bytes of free heap that stay for the next block. With 2^28, Wanda took 0.13 of the weights of a 0.5B model more.
KEPT = 2**26


def keep_heap() -> None:
    """Keep what a step has freed for the next one. glibc gives it back to the system, which hands it out again page by
    page: 20,000 faults and a seventh of a training step of a mini model (0.42 s to 0.36 s of a core). MALLOC_*
    variables of the user's own win."""
    if not any(name.startswith("MALLOC_") for name in os.environ):
        with contextlib.suppress(OSError, AttributeError):  # another C library
            mallopt = ctypes.CDLL("libc.so.6").mallopt
            for option, value in (TRIM_THRESHOLD, MMAP_THRESHOLD):
                mallopt(option, value)


def return_heap(kept: int = 0) -> None:
    """Give the system what `keep_heap` kept, where that is more than `kept` bytes: when a cell is done, and between a
    large model's blocks, whose matrices leave holes of other sizes than the next ones need."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallinfo2.restype = _HeapInfo
        if libc.mallinfo2().free > kept:
            libc.malloc_trim(0)


class _HeapInfo(ctypes.Structure):
    """glibc's struct mallinfo2: the ninth of its ten numbers is what is free in the heaps."""

    _fields_ = (
        *((f"number_{n}", ctypes.c_size_t) for n in range(8)),
        ("free", ctypes.c_size_t),
        ("at_the_end", ctypes.c_size_t),
    )


class FilePages:
    """The parts of memory that are files' (weights are a file's own pages, see tensors/reading.py), as they are now."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, int]] = []
        with contextlib.suppress(OSError, ValueError):  # another system
            for line in Path("/proc/self/maps").read_text().splitlines():
                place, _, _, _, inode, *_ = line.split()
                if inode != "0":
                    first, end = (int(number, 16) for number in place.split("-"))
                    self._parts.append((first, end))
        self._parts.sort()

    def give_back(self, tensor: torch.Tensor) -> None:
        """Take a tensor's pages out of memory, where they are a file's and nobody has written to them: who reads them
        again reads the file again."""
        first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE  # pages that lie in the tensor whole
        size = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
        number = bisect(self._parts, (first, 2**64)) - 1
        if size > 0 and tensor.is_contiguous() and number >= 0 and first + size <= self._parts[number][1]:
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), mmap.MADV_DONTNEED)


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
