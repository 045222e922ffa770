"""`vlbench time --accelerate=semi_structured` without a GPU: masks are verified, and no speed is made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.lab import Lab
from vlbench.compression.masks import keep_n_of_m
from vlbench.compression.semi_structured import UNMEASURED, Speed
from vlbench.cost import accelerated as module
from vlbench.cost import timing
from vlbench.cost.accelerated import accelerated
from vlbench.cost.timing import How, Patience
from vlbench.errors import RunFailed
from vlbench.plugins.table import table

CPU = How(torch.device("cpu"))
NOTE = f"{UNMEASURED}: it needs a GPU"


@pytest.fixture
def lab(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(timing, "LARGEST", 2)
    for name in ("WARM", "LATENCY", "BATCH"):
        monkeypatch.setattr(timing, name, Patience(1, 1, 0.0))
    return lab


def test_a_run_of_2_4_on_a_cpu(lab: Lab) -> None:
    """The flag is the command's alone: the record is untouched, the cost says what was verified and what was not."""
    assert lab.run("method=magnitude", "sparsity=2:4").code == 0
    (folder,) = (lab.folder / "runs").glob("*2of4*")
    record = (folder / "result.json").read_bytes()
    told = lab("time", folder.name, "--device=cpu", "--accelerate=semi_structured")
    assert told.code == 0, told
    assert f"2:4: 8 matrices: {NOTE}" in told.out
    (entry,) = json.loads((folder / "cost.json").read_text())["measured"]
    assert entry["accelerated"] == {"kind": "semi_structured", "matrices": 8, "note": NOTE}
    assert (folder / "result.json").read_bytes() == record


def test_other_patterns_and_kinds_are_refused_before_anything_is_timed(lab: Lab) -> None:
    lab.run("method=magnitude", "sparsity=0.5")
    (name,) = (p.name for p in (lab.folder / "runs").glob("*magnitude*"))
    told = lab.refused("time", name, "--device=cpu", "--accelerate=semi_structured")
    assert f"needs a run with sparsity=2:4, and {name} is unstructured" in told
    assert "--accelerate=fast should be semi_structured" in lab.refused("time", name, "--accelerate=fast")


def model(*, broken: bool = False) -> Any:
    """Two linears of one shape with a 2:4 mask, as a model whose stated sample is `batch` rows."""
    net = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    for parameter in net.parameters():
        parameter.data *= keep_n_of_m(parameter.data.abs(), 2, 4)
    if broken:
        net.get_parameter("1.weight").data[5, :4] = 1.0
    return type("Model", (), {"net": net})()


def test_a_broken_mask_is_an_error() -> None:
    names = ["0.weight", "1.weight"]
    assert accelerated(model(), names, "classify", CPU, 8)["note"] == NOTE
    with pytest.raises(RunFailed, match=r"1\.weight does not keep 2 of every 4 columns"):
        accelerated(model(broken=True), names, "classify", CPU, 8)


def test_shapes_are_timed_once_at_the_rows_they_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU would do, with times that are given."""
    asked = []

    def speed(weight: torch.Tensor, tokens: int, dtype: torch.dtype) -> Speed:
        asked.append((tuple(weight.shape), tokens, dtype))
        return Speed(3.0, 2.0)

    monkeypatch.setattr(module, "unsupported", lambda weight: "")
    monkeypatch.setattr(module, "semi_structured_speed", speed)
    monkeypatch.setattr(module, "infer", lambda model, capability, batch: model.net(batch))
    example = type("Stated", (), {"make": staticmethod(lambda model, count, train: torch.ones(count, 5, 64))})
    monkeypatch.setattr(module, "stated", lambda name: example)
    told = accelerated(model(), ["0.weight", "1.weight"], "classify", CPU, 8)
    assert asked == [((64, 64), 40, torch.float16)]
    assert told["linears"] == [{"rows": 64, "columns": 64, "tokens": 40, "count": 2, "dense_ms": 3.0, "sparse_ms": 2.0}]
    assert (told["ratio"], told["batch"], told["note"]) == (1.5, 8, "")
    assert module.line(told) == "2 matrices verified, their linears x1.50 in float16"


def test_the_rows_of_a_real_model() -> None:
    """DeiT's tokens: 4 patches and the class token of a 64-pixel image, a batch of 3."""
    family = table("models").get("deit-mini").load()
    card = next(c for c in family.cards if c.name == "deit-mini")
    config = {
        "architecture": "deit_small_patch16_224", "num_classes": 2, "label_names": ["a", "b"],
        "model_args": {"img_size": 64, "patch_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2},
    }  # fmt: skip
    net = family.build(card, config, Path())
    names = list(net.structure().matrices)
    assert set(module._rows(net, names, "classify", 3).values()) == {15}
