"""The benchmarks that need no other data or programs run in tiny form and print their figures: they cannot rot."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.benchmarks import adapters, boards, calibration, loading, metrics
from vlbench.cost import timing
from vlbench.plugins.table import table


def words(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> Any:
    """The benchmark, about to read these words from the command line."""
    monkeypatch.setattr(sys, "argv", [name, *text.split()])
    return importlib.import_module(f"tests.benchmarks.{name}")


def test_adapters(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(adapters, "TOKENS", (16,))
    monkeypatch.setattr(adapters, "BOUNDS", {(kind, 16): 2.0 for kind in adapters.KINDS})
    adapters.main(width=64, rounds=1)
    assert capsys.readouterr().out.count("x LoRA") == len(adapters.KINDS)


def test_boards(capsys: pytest.CaptureFixture[str]) -> None:
    boards.main(6)
    assert "6 results -> 2 rows in" in capsys.readouterr().out


def test_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.jpg")
    threads = torch.get_num_threads()
    words(monkeypatch, "decoding", f"{tmp_path} --size 16 --rounds 1").main()
    torch.set_num_threads(threads)
    out = capsys.readouterr().out
    assert "2 photos of 0.00 megapixels" in out
    assert "the same bytes" in out


def test_calibration(capsys: pytest.CaptureFixture[str]) -> None:
    calibration.on_a_matrix(width=64)
    assert "SparseGPT in float32, 64 x 64" in capsys.readouterr().out


def test_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("IMAGES", 4), ("DISTINCT", 2), ("SHAPE", (24, 32)), ("GALLERY", (6, 30))):
        monkeypatch.setattr(metrics, name, value)
    metrics.segmentation(tmp_path)
    metrics.retrieval()
    assert "ranks of (6, 30) scores" in capsys.readouterr().out


def test_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that opens; its cells are run by hand."""
    loading.write(tmp_path / "large", "internvl3-1b", loading.TINY)
    loading.write(tmp_path / "small", "internvl3-1b", loading.TINY)
    cls = table("models").get("internvl3-1b").load()
    model = cls.open(cls.cards[0], tmp_path / "large")
    assert set(model.structure().tower_sizes()) == {"vision", "language"}
    monkeypatch.setattr(loading, "peak", lambda folder, *_: {"small": 1, "large": 2}[folder.name])
    monkeypatch.setattr(sys, "argv", ["loading", str(tmp_path), "--methods", "dense"])
    loading.main()
    assert "internvl3-1b dense: peak 0.00 GB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "figure"),
    [
        ("cost", "--models deit-mini", "throughput x"),
        ("served", "--models deit-mini --runtimes torch --pairs 1 --batch 2", "speed-up"),
        ("cut", "--models deit-small --batch 1 --pairs 1", "deit-small"),
        ("search", "--model deit-small --batch 1 --pairs 1", "step, s of the CPU"),
        ("evaluation", "--tiny --slice 1 --tasks imagenet --device cpu", "imagenet"),
    ],
)
def test_by_its_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, text: str, figure: str
) -> None:
    module = words(monkeypatch, name, text)
    for patience in ("WARM", "LATENCY", "BATCH"):
        monkeypatch.setattr(timing, patience, timing.Patience(1, 2, 0.1))
    monkeypatch.setattr(timing, "LARGEST", 2)
    if name == "cut":
        monkeypatch.setattr(module, "WAYS", dict(list(module.WAYS.items())[:1]))
    module.main()
    assert figure in capsys.readouterr().out


def test_steps(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    steps = words(monkeypatch, "steps", "--model deit-mini --image 0 --batch 2 --pairs 1")
    steps.main()
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == list(steps.KINDS)
