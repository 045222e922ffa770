"""What is left of memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from vlbench import memory
from vlbench.errors import UserError


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
