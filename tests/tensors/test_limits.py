"""A checkpoint that declares more than it holds, or than a machine could: refused before anything is allocated."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.lab import Lab
from vlbench.errors import UserError
from vlbench.tensors.limits import bounded
from vlbench.tensors.reading import declared_elements, read_weights

GIANT = 10**12


def giant_safetensors(file: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * GIANT]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 64)


def whole_giant_safetensors(file: Path) -> None:
    """As long as it declares to be: a sparse file of 4 TB, which takes a page on the disk."""
    giant_safetensors(file)
    try:
        with file.open("r+b") as stream:
            stream.truncate(8 + int.from_bytes(file.read_bytes()[:8], "little") + 4 * GIANT)
    except OSError:
        pytest.skip("the file system has no sparse files of 4 TB")


def repeated(file: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(10**6, 10**6)}, file)


def giant_zip(file: Path) -> None:
    _declare(file, legacy=False)


def giant_legacy(file: Path) -> None:
    _declare(file, legacy=True)


def _declare(file: Path, *, legacy: bool) -> None:
    """torch.save's file of 7000 zeros that declares 10^12: the pickle's numbers are edited."""

    def edited(text: bytes) -> bytes:
        assert (text.count(b"M\x58\x1b"), text.count(b"M\xe8\x03K\x07\x86")) == (1, 1)
        many, rows = (b"\x8a\x06" + n.to_bytes(6, "little") for n in (GIANT, GIANT // 7))
        return text.replace(b"M\x58\x1b", many).replace(b"M\xe8\x03K\x07\x86", rows + b"K\x07\x86")

    torch.save({"w": torch.zeros(1000, 7)}, file, _use_new_zipfile_serialization=not legacy)
    if legacy:
        file.write_bytes(edited(file.read_bytes()))
        return
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, edited(part) if name.endswith("data.pkl") else part)


def bomb(file: Path) -> None:
    """A megabyte of zeros in a kilobyte; of a terabyte the check of checksums alone would take hours."""
    torch.save({"w": torch.zeros(250_000)}, file)
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)


@pytest.mark.parametrize("make", [giant_safetensors, whole_giant_safetensors, repeated, giant_zip, giant_legacy, bomb])
def test_a_giant_is_refused_before_it_is_allocated(
    tmp_path: Path, make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / ("w.safetensors" if "safetensors" in make.__name__ else "w.pth")
    make(file)
    monkeypatch.setattr("vlbench.tensors.reading.load_file", _never)
    plain = torch.load

    def watched(*args: Any, **more: Any) -> Any:
        if torch._guards.detect_fake_mode(None) is None:
            _never()
        return plain(*args, **more)

    monkeypatch.setattr(torch, "load", watched)
    with pytest.raises(UserError, match=r"is refused: it (declares|unpacks)") as told:
        read_weights(file)
    assert str(file) in str(told.value)
    assert len(str(told.value).splitlines()) == 1


def test_what_would_fit_is_refused_where_the_file_cannot_hold_it(tmp_path: Path) -> None:
    """10^8 elements are 0.4 GB, which any machine has."""
    torch.save({"w": torch.zeros(1).expand(10**4, 10**4)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"declares 100,000,000 elements of w and has [\d,]+ bytes"):
        read_weights(tmp_path / "w.pth")


def _never(*_: Any) -> None:
    raise AssertionError("it was read")


def test_what_is_declared_is_what_is_there(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(3, 5), "b": torch.ones(7, dtype=torch.bfloat16), "c": torch.zeros(0)}
    save_file(tensors, tmp_path / "w.safetensors")
    torch.save({"model": tensors, "epoch": 3}, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        assert declared_elements(tmp_path / name) == 22
        assert read_weights(tmp_path / name).keys() == tensors.keys()
    half = {"half": tensors["a"][1:]}  # a view has its storage's size, and is read as it is
    torch.save(half, tmp_path / "view.pth")
    assert torch.equal(read_weights(tmp_path / "view.pth")["half"], half["half"])


@pytest.mark.parametrize("argument", ["embed_dim", "depth", "img_size"])
def test_a_giant_configuration_is_refused_before_it_is_built(lab: Lab, argument: str) -> None:
    file = lab.weights / "config.json"
    config = json.loads(file.read_text())
    config["model_args"][argument] = {"embed_dim": 10**6, "depth": 10**8, "img_size": 65_000}[argument]
    file.write_text(json.dumps(config))
    told = lab.run()
    assert told.code == 2
    assert f"{lab.weights} is refused: the network of its configuration has" in told.err
    assert len(told.err.splitlines()) == 1
    assert not (lab.folder / "runs").exists()


def test_a_network_without_end_is_refused_by_the_number_of_its_tensors(tmp_path: Path) -> None:
    """Blocks of one element: 10^7 of them would be built for hours before they fill a memory."""
    with pytest.raises(UserError, match=r"has 20,000 tensors or more"), bounded(tmp_path):
        _ = [torch.empty(1) for _ in range(30_000)]
    with pytest.raises(UserError, match=r"has 20,000 tensors or more"), bounded(tmp_path):
        torch.linspace(0, 0.1, 30_000)
