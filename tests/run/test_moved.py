"""Weights that move without training are refused, by methods that move them in each way that is not allowed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.lab import Lab, workspace

METHOD = '''"""A stranger's method."""

import torch

from vlbench.method import Method, method
from vlbench.pruning.scoring import ScorePruner, ScoreOptions


@method("hand", title="Hand", role="pruner", patterns=("unstructured",), uses_seed=True)
class Hand(ScorePruner):
    """Masks, and does more."""

    Options = ScoreOptions

    def score(self, weight, statistics):
        return weight.abs()

    def apply(self, job):
        super().apply(job)
        net = job.model.net
        {more}
'''
DESCENT = """batch = job.data.calibration(4)[0]
        head = net.head.weight
        head.requires_grad_(True)
        job.loss(batch).backward()
        with torch.no_grad():
            head -= 0.1 * head.grad"""
WAYS = {
    "descent by hand": (DESCENT, "hand moved weights and says nothing of it .* of head.weight"),
    "a masked matrix": (
        "name = next(iter(job.changes.state.masks))\n        with torch.no_grad():\n"
        "            net.get_parameter(name).mul_(1.01)",
        "hand moved weights and says nothing of it",
    ),
    "declared": ('job.changes.update({"head.weight": net.head.weight * 2})', ""),
    "nothing": ("", ""),
}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    with workspace(tmp_path, monkeypatch, capsys) as made:
        yield made


@pytest.mark.parametrize("way", WAYS)
def test_weights_that_move_are_declared_or_refused(lab: Lab, way: str) -> None:
    more, why = WAYS[way]
    lab.plug("methods/hand.py", METHOD.replace("{more}", more or "pass"))
    told = lab.run("method=hand", "sparsity=0.5", "--json")
    assert told.code == (1 if why else 0), told
    if why:
        assert re.search(why, told.err), told.err
        assert not list((lab.folder / "runs").glob("*hand*/model")), "no model of it is left"


FORMULAS = (
    "uniform",
    "sparsegpt calibration_samples=4",
    "wanda+dsnot wanda.calibration_samples=4 dsnot.calibration_samples=4",
    "flap calibration_samples=4",
    "shortgpt calibration_samples=4",
    "magnitude sparsity=2:4",
)


@pytest.mark.parametrize("words", FORMULAS)
def test_methods_that_cut_mask_or_update_by_a_formula_pass(lab: Lab, words: str) -> None:
    method, *more = words.split()
    told = lab.run(f"method={method}", *more, "--json")
    assert told.code == 0, told.err


@pytest.mark.parametrize("way", WAYS)
def test_a_large_model_is_opened_again_instead_of_copied(lab: Lab, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlbench.run.moved.LARGE", 0)
    test_weights_that_move_are_declared_or_refused(lab, way)


def test_a_later_link_is_compared_with_what_the_one_before_saved(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlbench.run.moved.LARGE", 0)
    told = lab.run("method=magnitude+dsnot", "magnitude.sparsity=0.5", "dsnot.calibration_samples=4", "--json")
    assert told.code == 0, told.err
    lab.plug("methods/hand.py", METHOD.replace("{more}", "job.model.net.get_parameter('head.weight').data += 1"))
    told = lab.run("method=uniform+hand", "uniform.sparsity=0.5", "hand.sparsity=0.5")
    assert told.code == 1
    assert "hand moved weights and says nothing of it" in told.err
