"""Training states: the last whole one, of this cell, intact; or a sentence that names the folder."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vlbench.errors import UserError
from vlbench.tensors import checkpoint as module
from vlbench.tensors.checkpoint import CheckpointStore


def tensors() -> dict[str, Tensor]:
    shared = torch.arange(4.0)
    return {"a": shared, "tied": shared, "step": torch.tensor(3.0), "half": torch.ones(2, dtype=torch.bfloat16)}


def saved(tmp_path: Path, **identity: object) -> CheckpointStore:
    store = CheckpointStore(tmp_path / "checkpoint" / "search", identity or {"cell": "x"}, 0)
    store.save(7, tensors(), {"losses": [0.1, 1 / 3], "pairs": [(1, 2)]})
    return store


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "none", {}).load() is None
    found = saved(tmp_path).load()
    assert found is not None
    step, state, log = found
    assert (step, log) == (7, {"losses": [0.1, 1 / 3], "pairs": [[1, 2]]})
    assert state.keys() == tensors().keys()
    assert all(torch.equal(state[k], v) and state[k].dtype == v.dtype for k, v in tensors().items())


def test_nothing_to_save_is_a_state_too(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "c", {})
    store.save(1, {}, None)
    assert store.load() == (1, {}, None)


@pytest.mark.parametrize("name", ["meta.json", "state.safetensors"])
def test_every_flipped_bit_is_told(tmp_path: Path, name: str) -> None:
    store = saved(tmp_path)
    file = store.folder / name
    data = file.read_bytes()
    for place in range(0, len(data), 3):
        if chr(data[place]).isspace():
            continue
        file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(UserError, match=r"checkpoint .*search is damaged: delete that folder"):
            store.load()


@pytest.mark.parametrize("name", ["meta.json", "state.safetensors"])
@pytest.mark.parametrize("part", [None, 0.0, 0.5, 0.99])
def test_a_truncated_or_missing_file_is_told(tmp_path: Path, name: str, part: float | None) -> None:
    store = saved(tmp_path)
    file = store.folder / name
    data = file.read_bytes()
    file.unlink()
    if part is not None:
        file.write_bytes(data[: int(part * len(data))])
    with pytest.raises(UserError, match=r"checkpoint .*search is damaged"):
        store.load()


def test_another_cells_state_is_refused(tmp_path: Path) -> None:
    """Every difference is told, with both values."""
    saved(tmp_path, cell="x", **{"finetune.lr": 0.001, "finetune.clip": 0.5})
    new = {"cell": "y", "finetune.lr": 0.0005, "finetune.tune": "1e-3"}
    other = CheckpointStore(tmp_path / "checkpoint" / "search", new)
    told = (
        "belongs to other settings (cell was x and is y; finetune.clip was 0.5 and is not given; finetune.lr was 0.001 "
        "and is 0.0005; finetune.tune was not given and is 1e-3): delete that folder"
    )
    with pytest.raises(UserError, match=re.escape(told)):
        other.load()


def test_what_json_reads_back_otherwise_is_no_difference(tmp_path: Path) -> None:
    saved(tmp_path, pair=(1, 2), none=None)
    assert CheckpointStore(tmp_path / "checkpoint" / "search", {"pair": [1, 2], "none": None}).load() is not None


def test_the_state_between_the_two_renames_is_found(tmp_path: Path) -> None:
    store = saved(tmp_path)
    store.folder.rename(store.folder.with_name(".search.old"))
    found = store.load()
    assert found is not None
    assert found[0] == 7
    store.save(8, tensors(), [])
    found = store.load()
    assert found is not None
    assert found[0] == 8
    assert [p.name for p in store.folder.parent.iterdir()] == ["search"]


def test_a_full_disk_keeps_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = saved(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_tensors", full)
        with pytest.raises(UserError, match=r"cannot write .*search: No space left on device"):
            store.save(8, tensors(), [])
    found = store.load()
    assert found is not None
    assert found[0] == 7
    assert [p.name for p in store.folder.parent.iterdir()] == ["search"]


def test_a_loaded_state_does_not_hold_its_file(tmp_path: Path) -> None:
    """On a network disk a mapped file cannot be removed, and the next save would fail."""
    store = saved(tmp_path)
    found = store.load()
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    assert found is not None
    assert str(store.folder) not in maps.read_text()


def test_saving_takes_a_tenth_of_the_time_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    store = CheckpointStore(tmp_path / "c", {}, every_seconds=15)
    assert not store.due()
    now[0] = 15
    assert store.due()

    def slow(file: Path, state: dict[str, Tensor]) -> None:
        now[0] += 4
        file.write_bytes(b"")

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_tensors", slow)
        store.save(1, {}, [])
    now[0] += 39
    assert not store.due()
    now[0] += 1
    assert store.due()
    store.every_seconds = 0
    now[0] -= 40
    assert store.due()


def test_a_finished_stage_leaves_nothing(tmp_path: Path) -> None:
    store = saved(tmp_path)
    store.clear()
    assert store.load() is None
    assert list(store.folder.parent.iterdir()) == []
    store.clear()
