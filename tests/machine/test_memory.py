"""What is left of memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vlbench.errors import UserError
from vlbench.machine import memory


def test_of_the_system_it_is_what_linux_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.free_memory(torch.device("cpu")) > 1 << 20
    monkeypatch.setattr(Path, "read_text", lambda path: "MemTotal: 9 kB\nMemAvailable:  3 kB\n")
    assert memory.free_memory(torch.device("cpu")) == 3 * 1024


def test_a_second_copy_is_asked_of_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose layers are on two: 40 bytes on one and 24 of half precision on the other."""
    net = nn.Sequential(nn.Linear(4, 2), nn.Linear(5, 2, device="meta", dtype=torch.float16))
    room = {"cpu": 40, "meta": 24}
    monkeypatch.setattr(memory, "free_memory", lambda device: room[device.type])
    memory.refuse_second_copy(net, "loss=kd")
    room["meta"] = 23
    with pytest.raises(UserError, match=r"loss=kd needs the dense model .* 2.4e-08 GB more, and meta has 2.3e-08 GB"):
        memory.refuse_second_copy(net, "loss=kd")


STEPS = """
import resource, statistics, sys, torch
from vlbench.machine.memory import keep_heap
if sys.argv[1] == "keep":
    keep_heap()
def step():
    return [torch.ones(4 << 20) for _ in range(8)]
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def of_a_step():
    before = faults()
    step()
    return faults() - before
step(), step()
print(statistics.median_low(of_a_step() for _ in range(9)))  # the heap may still grow by a block in one of them
"""


def test_a_step_takes_the_memory_of_the_one_before() -> None:
    """128 MB in blocks of 16: 32,768 pages of 4 kB, which are not asked for again."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("mallopt is glibc's")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}

    def faults(how: str, **more: str) -> int:
        command = [sys.executable, "-c", STEPS, how]
        told = subprocess.run(command, env=environment | more, capture_output=True, text=True, check=True)
        return int(told.stdout)

    # glibc's threshold, at rest: by itself it follows the blocks that were freed, not always in time.
    plain, kept = faults("plain", MALLOC_MMAP_THRESHOLD_="131072"), faults("keep")
    if plain < 1000:
        pytest.skip(f"{plain} pages a step without it: this system's are larger")
    assert kept < plain / 50


HELD = """
from pathlib import Path
import torch
from vlbench.machine.memory import keep_heap, return_heap
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])
keep_heap()
blocks = [torch.ones(4 << 20) for _ in range(16)]
full = resident()
del blocks
return_heap(1 << 30)
kept = resident()
return_heap()
print(full, kept, resident())
"""


def test_a_cell_that_is_done_holds_no_memory() -> None:
    """256 MB: kept while the cell is at work, returned after it."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("malloc_trim is glibc's")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", HELD], env=environment, capture_output=True, text=True, check=True)
    full, kept, after = (int(pages) * os.sysconf("SC_PAGE_SIZE") for pages in done.stdout.split())
    assert full - kept < 1 << 20
    assert kept - after > 200 << 20


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells what lies in memory")
def test_pages_of_a_file_are_given_back_and_read_again(tmp_path: Path) -> None:
    """And no other tensor's: its numbers would be lost."""
    save_file({"a": torch.randn(1 << 20), "b": torch.randn(1 << 20)}, tmp_path / "weights.safetensors")
    read = load_file(tmp_path / "weights.safetensors")
    sums = {name: float(tensor.sum()) for name, tensor in read.items()}
    pages, before = memory.FilePages(), _in_memory("weights.safetensors")
    assert before > 7 << 20
    pages.give_back(read["a"])
    assert before - _in_memory("weights.safetensors") > 3 << 20
    assert {name: float(tensor.sum()) for name, tensor in read.items()} == sums
    own = torch.ones(1 << 22)
    pages.give_back(own)
    assert bool((own == 1).all())


def _in_memory(name: str) -> int:
    """Bytes of the parts of this process's memory that are of that file."""
    found, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            here = line.endswith(name)
        elif here and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found
