"""Compressed models on disk: reloaded bit for bit, whole or not at all, and every damage told with its file."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.families import open_model
from vlbench.compression import saved
from vlbench.compression.cut import Cut, cut
from vlbench.compression.masks import apply_masks
from vlbench.compression.saved import distinct_tensors, is_saved, load_model, save_model
from vlbench.compression.state import Compression
from vlbench.disk import storage
from vlbench.errors import UserError
from vlbench.model import Model
from vlbench.plugins.table import table

CONFIG = {
    "architecture": "deit_small_patch16_224",
    "num_classes": 3,
    "model_args": {"img_size": 64, "patch_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "label_names": ["a", "b", "c"],
}


def dense(seed: int = 0) -> Model:
    cls = table("models").get("deit-mini").load()
    torch.manual_seed(seed)
    model: Model = cls.build(next(c for c in cls.cards if c.name == "deit-mini"), CONFIG, Path())
    return model


def compressed(masked: bool = True) -> tuple[Model, Compression]:
    """Cut twice, then masked."""
    model, state = dense(), Compression(pattern="structured", trained=True, steps=3, log={"loss": [0.1, 1 / 3]})
    for half in (0, 1):
        structure = model.structure()
        keep = {s.name: torch.arange(half, s.units, 2) for s in structure.sites}
        state.cuts.append(Cut.of(structure, keep))
        cut(model.net, structure, keep)
    if masked:
        torch.manual_seed(1)
        names = model.structure().matrices
        state.masks = {name: torch.rand(model.net.get_parameter(name).shape) > 0.3 for name in names}
        state.masks["head.weight"] = torch.rand(model.net.get_parameter("head.weight").shape) > 0.5  # not prunable
        apply_masks(model.net, state.masks)
    return model, state


@pytest.mark.parametrize("masked", [True, False])
def test_reloaded_it_is_the_same_bit_for_bit(tmp_path: Path, masked: bool) -> None:
    model, state = compressed(masked)
    save_model(tmp_path / "model", model, state)
    again, what = load_model(tmp_path / "model")
    old, new = model.net.state_dict(), again.net.state_dict()
    assert old.keys() == new.keys()
    assert all(torch.equal(old[k], new[k]) for k in old)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.encode(images), again.encode(images))
    assert what.masks.keys() == state.masks.keys()
    assert all(torch.equal(what.masks[k], v) for k, v in state.masks.items())
    assert (what.cuts, what.pattern, what.trained, what.steps, what.log) == (
        state.cuts, state.pattern, state.trained, state.steps, state.log,
    )  # fmt: skip
    again.net.eval()
    save_model(tmp_path / "again", again, what)
    for name in ("model.safetensors", "vlbench.json", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


@pytest.mark.parametrize("kept_scale", [True, False])
def test_the_softmax_scale_of_a_cut_is_kept_on_disk(tmp_path: Path, kept_scale: bool) -> None:
    """Of CLIP's open_clip attention, where published code divides by the root of the kept head size."""
    model = open_model("clip-mini")
    structure = model.structure()
    keep = {site.name: torch.arange(0, site.units, 2) for site in structure.sites}
    cut(model.net, structure, keep, kept_scale=kept_scale)
    state = Compression(cuts=[Cut.of(structure, keep, kept_scale=kept_scale)], pattern="structured")
    save_model(tmp_path / "model", model, state)
    again, _ = load_model(tmp_path / "model")
    texts = torch.arange(32)[None]
    with torch.no_grad():
        found = [m.net.eval().encode_text(texts) for m in (model, again)]
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["model.safetensors", "masks.bin", "config.json", "vlbench.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_every_damage_is_told_with_its_file(tmp_path: Path, name: str, damage: str) -> None:
    save_model(tmp_path / "model", *compressed())
    file = tmp_path / "model" / name
    data = file.read_bytes()
    places = [i for i in range(0, len(data), len(data) // 7) if not chr(data[i]).isspace()]
    for place in places if damage == "flipped" else [len(data) // 2]:
        if damage == "missing":
            file.unlink()
        elif damage == "truncated":
            file.write_bytes(data[:place])
        else:
            file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(UserError) as caught:
            load_model(tmp_path / "model")
        assert name in str(caught.value)
        assert str(tmp_path / "model") in str(caught.value)


def test_a_later_format_is_told(tmp_path: Path) -> None:
    save_model(tmp_path / "model", *compressed())
    file = tmp_path / "model" / "vlbench.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 9}))
    with pytest.raises(UserError, match=f"is of format 9, this vlbench reads {saved.FORMAT}: update vlbench"):
        load_model(tmp_path / "model")


def test_a_file_that_someone_adds_does_no_harm(tmp_path: Path) -> None:
    save_model(tmp_path / "model", *compressed())
    (tmp_path / "model" / "README.md").write_text("mine")
    load_model(tmp_path / "model")


def test_half_a_model_is_none(tmp_path: Path) -> None:
    save_model(tmp_path / "model", *compressed())
    (tmp_path / "model").rename(tmp_path / ".model.tmp")  # as it lies before the last step
    assert not is_saved(tmp_path / "model")
    with pytest.raises(UserError, match="holds no compressed model"):
        load_model(tmp_path / "model")
    save_model(tmp_path / "model", *compressed())
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_killed_while_it_is_replaced_the_old_model_stands(tmp_path: Path) -> None:
    save_model(tmp_path / "model", *compressed())
    (tmp_path / "model").rename(tmp_path / ".model.old")
    assert is_saved(tmp_path / "model")
    load_model(tmp_path / "model")


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for module, name in ((saved, "save_tensors"), (storage.os, "fsync")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
                save_model(tmp_path / "model", *compressed())
        assert list(tmp_path.iterdir()) == []


def test_tied_weights_are_stored_once_and_views_by_themselves() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
            self.b.weight = self.a.weight
            self.register_buffer("first", self.a.weight.detach()[0])
            self.register_buffer("none", torch.empty(0))
            self.register_buffer("nil", torch.empty(0))

    found: dict[str, Any] = distinct_tensors(Net())
    assert found.keys() == {"a.weight", "first", "none", "nil"}
