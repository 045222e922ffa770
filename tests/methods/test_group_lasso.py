"""The proximal step against the original code's arrays, alone and within its optimiser; and what a search leaves."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.lab import Lab
from tests.oracles import Oracle
from vlbench.disk.digests import MANIFEST

lasso = importlib.import_module("vlbench.methods.group_lasso")


def groups(x: Tensor) -> Tensor:
    """A row a group: an input channel of a convolution, a column of a matrix."""
    return x.transpose(0, 1).flatten(1)


@pytest.fixture
def oracle(shared: Path) -> Oracle:
    return Oracle(shared / "oracles" / "neighbours" / "group_lasso_a.npz")


@pytest.mark.parametrize("kind", ["conv", "linear"])
@pytest.mark.parametrize("reweight", [0, 1])
def test_the_step_alone(oracle: Oracle, kind: str, reweight: int) -> None:
    point, metric = groups(oracle[f"{kind}/W"]), groups(oracle[f"{kind}/V"])
    threshold = oracle.facts["lambda_"] * (point.shape[1] ** 0.5 if reweight else 1)
    found = lasso.proximal(point, metric, threshold)
    assert torch.allclose(found, groups(oracle[f"{kind}/prox_weighted_reweight{reweight}"]), rtol=0, atol=1e-9)
    found = lasso.proximal(point, torch.ones_like(point), threshold)
    assert torch.allclose(found, groups(oracle[f"{kind}/prox_reweight{reweight}"]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_the_step_within_its_optimiser(oracle: Oracle, kind: str) -> None:
    """AdamW as the original has it (the second moment is not corrected in the metric), then our step."""
    facts = oracle.facts
    b1, b2 = facts["betas"]
    x = oracle[f"{kind}/W"].clone()
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    for step in range(1, facts["steps"] + 1):
        g = oracle[f"{kind}/grad/{step}"]
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        d = v.sqrt() + facts["eps"]
        x = x - facts["lr"] * (1 - b2**step) ** 0.5 / (1 - b1**step) * m / d
        x = x - facts["lr"] * facts["weight_decay"] * x
        threshold = facts["lr"] * facts["lambda_"] * groups(x).shape[1] ** 0.5
        x = lasso.proximal(groups(x), groups(d), threshold).view(groups(x).shape)
        rest = oracle[f"{kind}/W"].shape
        x = x.view(rest[1], rest[0], *rest[2:]).transpose(0, 1)
        assert torch.allclose(x, oracle[f"{kind}/param/{step}"], rtol=0, atol=1e-9)


def test_a_strong_penalty_leaves_zero_units(lab: Lab) -> None:
    """A whole run: the record says how many units were zero before the cut, and the target is met."""
    counts = {}
    for strength in ("0.0001", "3000"):
        told = lab.run(
            "method=group_lasso", "steps=4", "group_lasso.batch_size=8", f"strength={strength}", "sparsity=0.5"
        )
        assert told.code == 0, told.err
    for file in lab.folder.rglob("result.json"):
        record = json.loads(file.read_text())
        if "group_lasso" in str(file):
            manifest = json.loads((file.parent / "model" / MANIFEST).read_text())
            log = manifest["log"]["group_lasso"]
            counts[log["zero_units"]] = record["parameters"]["removed"] / record["parameters"]["prunable"]
    assert counts[0] == 0.5
    assert max(counts) > 0
    assert counts[max(counts)] > 0.5  # zero units that the cut left count as removed


def test_sgd_has_no_second_moment(lab: Lab) -> None:
    told = lab.run("method=group_lasso", "optimiser=sgd")
    assert told.code == 2
    assert "second moment" in told.err
