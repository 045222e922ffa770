"""Oracle: a marker file that a pickle would write, sockets that fail when opened, and timm's own model of a name."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from vlbench.errors import UserError
from vlbench.nn.timm_names import plain_model

DeiT: Any = importlib.import_module("vlbench.registry.deit").DeiT
CARD = next(c for c in DeiT.cards if c.name == "deit-tiny")
SMALL = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2}


class Runs:
    """Writes a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def malicious(folder: Path, extra: dict[str, Any], architecture: str = "deit_tiny_patch16_224") -> Path:
    net = timm.create_model("deit_tiny_patch16_224", num_classes=3, **SMALL)
    save_file(net.state_dict(), folder / "model.safetensors")
    torch.save({"x": Runs(folder / "ran")}, folder / "evil.pth")
    config = {
        "architecture": architecture,
        "num_classes": 3,
        "model_args": {**SMALL, **extra},
        "label_names": list("abc"),
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "stock.json").write_text('{"attention": {}}')
    return folder


ATTACKS = ["checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "scriptable", "x"]


@pytest.mark.parametrize("name", ATTACKS)
def test_an_argument_that_reads_files_is_refused_and_nothing_is_unpickled(name: str, tmp_path: Path) -> None:
    folder = malicious(tmp_path, {name: str(tmp_path / "evil.pth")})
    with pytest.raises(UserError, match=name):
        DeiT.open(CARD, folder)
    with pytest.raises(ValueError, match="other files"):
        exported(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["hf-hub:timm/x", "hf_hub:timm/x", "local-dir:/tmp", "timm/x", "a b", "", "../x"])
def test_an_architecture_is_a_plain_name(name: str, tmp_path: Path) -> None:
    folder = malicious(tmp_path, {}, name)
    with pytest.raises(UserError, match="no plain name"):
        DeiT.open(CARD, folder)
    with pytest.raises(ValueError, match="other files"):
        exported(folder)


WRONG: list[dict[str, Any]] = [
    {"depth": "x"}, {"depth": True}, {"embed_dim": 0}, {"num_heads": 0}, {"qk_norm": 3}, {"num_heads": 3},
    {"img_size": [1]}, {"patch_size": -1}, {"depth": 1.5}, {"act_layer": "absent"}, {"global_pool": "os.system"},
]  # fmt: skip


@pytest.mark.parametrize("extra", WRONG, ids=str)
def test_values_of_another_kind_are_told_in_a_sentence(extra: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        plain_model("deit_tiny_patch16_224", {**SMALL, **extra})


def test_a_plain_folder_opens_as_timms_model(tmp_path: Path) -> None:
    folder = malicious(tmp_path, {"qkv_bias": True})
    ours, theirs, images = DeiT.open(CARD, folder), exported(folder), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(ours.encode(images), theirs(images), atol=1e-6)


def exported(folder: Path) -> Any:
    file = Path(__file__).parents[2] / "registry" / "loaders" / "deit.py"
    spec = importlib.util.spec_from_file_location("exported_loader", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(folder)
