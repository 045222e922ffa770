"""One-shot pruners as commands: mistakes are told before the dense model is evaluated, and chains keep their zeros."""

from __future__ import annotations

import pytest
import torch

from tests.lab import Lab
from vlbench.compression.saved import load_model
from vlbench.records.record import read_record
from vlbench.run.runner import Runner

WRONG = [
    ("method=magnitude sparsity=2:5", "needs widths divisible by 5; these are not: blocks.0"),
    ("method=wanda sparsity=2:5 calibration_samples=4", "needs widths divisible by 5"),
    ("method=magnitude towers=visoin:0.5 sparsity=0.5", "no tower 'visoin'. Its towers: vision (vision)"),
    ("method=magnitude language=0.5 sparsity=0.5", "this model has no tower 'language'"),
    ("method=magnitude vision=0.5 sparsity=0.9", "removes 0.5 of the prunable set"),
    ("method=magnitude pattern=structured group=model sparsity=0.999", "one unit left in each of 4 sites: at most"),
    ("method=magnitude pattern=structured group=tower sparsity=0.999", "one unit left in each of 4 sites"),
    ("method=uniform allocation=unified sparsity=0.999", "cannot be reached with one unit left in each of 4 sites"),
    ("method=wanda calibration_samples=1000", "1000 calibration samples were asked for, and the split train of"),
    ("method=obd calibration_samples=1000", "shows 18 images: give calibration_samples= that many or fewer"),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG)
def test_what_cannot_be_is_told_before_anything_is_evaluated(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, words: str, sentence: str
) -> None:
    def evaluated(*_: object) -> None:
        raise AssertionError("a model was evaluated")

    monkeypatch.setattr(Runner, "_evaluate", evaluated)
    (lab.folder / "runs").mkdir()
    assert sentence in lab.refused_run(*words.split())


@pytest.mark.parametrize(("words", "sentence"), WRONG[:3])
def test_it_is_told_as_well_where_the_dense_model_is_done(lab: Lab, words: str, sentence: str) -> None:
    assert lab.run("method=dense").code == 0
    assert sentence in lab.refused_run(*words.split())


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_finetuning_moves_the_surviving_weights_alone(lab: Lab, method: str) -> None:
    few = ["calibration_samples=4"] if method == "wanda" else []
    words = ["finetune.steps=2", "finetune.warmup=0", "finetune.batch_size=4", "finetune.lr=0.01"]
    assert lab.run(f"method={method}", *few).code == 0
    assert lab.run(f"method={method}+finetune", *few, *words).code == 0
    models = {}
    for folder in (lab.folder / "runs").glob(f"*{method}*"):
        record = read_record(folder / "result.json")
        models[record.trained] = (*load_model(folder / "model"), record)
    (pruned, state, _), (trained, kept, record) = models[False], models[True]
    assert kept.masks.keys() == state.masks.keys()
    for name, mask in state.masks.items():
        assert torch.equal(kept.masks[name], mask)
        before, after = pruned.net.get_parameter(name), trained.net.get_parameter(name)
        assert bool((after[~mask] == 0).all())
        assert not torch.equal(before[mask], after[mask])
    assert record.pattern == "unstructured"
    assert record.parameters.removed == record.parameters.prunable / 2


def test_an_emptied_tower_is_flagged(lab: Lab) -> None:
    """And its sparsity is reported."""
    lab.run("method=magnitude", "sparsity=0.985")
    (folder,) = (lab.folder / "runs").glob("*magnitude*")
    record = read_record(folder / "result.json")
    assert "modality collapse: vision" in record.flags
    assert record.parameters.towers["vision"] == pytest.approx(0.985, abs=0.01)
