"""Norms and biases: they alone move, whatever was pruned; a killed run ends the same."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.methods.restored import PRUNERS, chain, is_plain, made, pruned, reloads, resumes, run
from tests.minis import opened
from vlbench.checks.tiny import Workshop
from vlbench.errors import UserError
from vlbench.plugins.table import table


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return made("norms", tmp_path_factory.mktemp("norms"))


def trained(net: nn.Module) -> set[str]:
    link: Any = table("methods").get("norms").load()
    return set(sys.modules[link.__module__]._trained(net))


@pytest.mark.parametrize("pattern", PRUNERS)
def test_they_alone_move(workshop: Workshop, tmp_path: Path, pattern: str) -> None:
    before, after = pruned(workshop, pattern), run(workshop, chain("norms", pattern))
    old, new = before.model.net.state_dict(), after.model.net.state_dict()
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert moved == {name for name in old if "norm" in name or name.endswith(".bias")}
    assert after.state.masks.keys() == before.state.masks.keys()
    assert after.state.log["norms"]["parameters"] == sum(old[name].numel() for name in moved)
    assert is_plain(after, workshop)
    reloads(workshop, after, tmp_path / "saved")


@pytest.mark.parametrize("pattern", PRUNERS)
def test_a_killed_run_ends_the_same(workshop: Workshop, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    resumes(workshop, chain("norms", pattern, loss="both"), monkeypatch, after=2)


@pytest.mark.parametrize("name", ["blip-caption-mini", "clip-mini", "segmenter-mini"])
def test_no_family_has_other_parameters_of_one_dimension_among_them(name: str) -> None:
    """Class tokens, temperatures and embeddings are neither."""
    net = opened(name).net
    found = trained(net)
    for path, parameter in net.named_parameters():
        norm = path.rpartition(".")[0].rpartition(".")[2].lower()
        wanted = path.endswith("bias") or "norm" in norm or norm.startswith("ln")
        assert (path in found) == wanted, path
        assert parameter.ndim == 1 or path not in found


def test_a_model_without_any_is_refused() -> None:
    cls: Any = table("methods").get("norms").load()
    model: Any = opened("deit-mini")
    model.net = nn.Linear(3, 3, bias=False)
    with pytest.raises(UserError, match="deit-mini has neither norms nor biases: use finetune or sparselora"):
        cls(cls.Options()).check_model(model)
