"""Hidden states in host memory and on disk, by room."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlbench.calibration.activations import VARIABLE, Activations, Room

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_has_no_room_comes_back_from_disk(tmp_path: Path, dtype: torch.dtype) -> None:
    values = [torch.randn(2, 3, 4).to(dtype) for _ in range(4)]
    held = Activations(CPU, Room(0, 2 * values[0].numel() * dtype.itemsize, tmp_path))
    for i, value in enumerate(values):
        held.put((i, 0), value)
    assert held.counts() == {"cpu": 2, "disk": 2}
    assert all(torch.equal(held.get((i, 0)), value) for i, value in enumerate(values))
    held.put((0, 0), values[3])  # a freed place is used again
    held.put((3, 0), values[0])
    assert held.counts() == {"cpu": 2, "disk": 2}
    assert torch.equal(held.get((3, 0)), values[0])
    assert len(list(tmp_path.rglob("*.bin"))) == 2
    held.close()
    assert not list(tmp_path.rglob("*.bin"))


def test_all_towers_share_one_room(tmp_path: Path) -> None:
    """Two tensors fit, whoever holds them; what is closed gives its place back."""
    room = Room(0, 2 * 12 * 4, tmp_path)
    first, second = Activations(CPU, room), Activations(CPU, room)
    for i in (0, 1):
        first.put((i, 0), torch.ones(12))
    second.put((0, 0), torch.ones(12))
    assert second.counts() == {"disk": 1}
    first.close()
    second.put((0, 0), torch.ones(3, 4))
    second.put((1, 0), torch.ones(12))
    assert second.counts() == {"cpu": 2}


def test_the_room_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "0.5")
    assert Room.here(CPU).host == 2**29
    monkeypatch.delenv(VARIABLE)
    assert Room.here(CPU).host > 0


def test_what_is_put_is_copied_and_takes_over_the_memory_of_what_was_there() -> None:
    """One block's activations in all, whatever the allocator does; neither the caller's tensor nor a view of the old
    value is written through."""
    held = Activations(CPU, Room(0, 1e9))
    first, second = torch.randn(1, 3, 3), torch.randn(1, 3, 3)
    before = first.clone()
    held.put((0, 0), first)
    place = held.get((0, 0)).data_ptr()
    held.put((0, 0), second)
    assert held.get((0, 0)).data_ptr() == place
    assert torch.equal(held.get((0, 0)), second)
    assert torch.equal(first, before)
    held.put((0, 0), held.get((0, 0)).transpose(1, 2))
    assert torch.equal(held.get((0, 0)), second.transpose(1, 2))
    held.put((0, 0), torch.ones(1, 2, 3))  # another length
    assert held.get((0, 0)).shape == (1, 2, 3)
    assert held.counts() == {"cpu": 1}
