"""What a cell needs of a device that is not here: the lines of `run --plan --on`."""

from __future__ import annotations

import pytest

from tests.lab import Lab
from vlbench.cell.cell import Cell, open_cell
from vlbench.cell.resolve import resolve
from vlbench.cell.words import parse
from vlbench.cost import needs as module
from vlbench.cost.devices import DEVICES, Device
from vlbench.cost.needs import needs


def cell(lab: Lab, words: str) -> Cell:
    return open_cell(resolve({**parse(list(lab.words)), **parse(words.split())}))


def test_stages_are_told_with_their_operations(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 operations a MAC; a step is three forward passes, of all samples of a batch."""
    lab_cell = cell(lab, "method=magnitude+finetune steps=10 finetune.batch_size=4 evaluation.batch_size=2")
    monkeypatch.setattr(module, "macs", lambda entry, capability: 10**12)
    monkeypatch.setitem(DEVICES, "a100", Device("A", 10**9, 2e12, 4e12, "test"))
    lines = needs(lab_cell, "a100")
    assert list(lines) == ["on", "evaluating", "finetune", "fits"]
    assert lines["on"] == "A, 1 GB, 2 TFLOP/s (test)"
    samples = len(lab_cell.samples)
    assert f"; {samples:.2g} s for {samples} samples" in lines["evaluating"]
    assert "; 120 s for 10 steps" in lines["finetune"]
    assert lines["fits"] == "yes"


def test_what_does_not_fit_is_told_with_what_makes_it_fit(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab_cell = cell(lab, "method=magnitude+finetune steps=10 finetune.batch_size=16 evaluation.batch_size=2")
    step = module.step_of(lab_cell.spec.links[1])
    assert step is not None
    full = module.trained(lab_cell.spec.model, "classify", step).total
    monkeypatch.setitem(DEVICES, "a100", Device("A", full - 1, 1e12, 1e12, "test"))
    told = needs(lab_cell, "a100")["fits"]
    assert told.startswith("finetune does not fit: finetune.checkpointing=on needs ")
    monkeypatch.setitem(DEVICES, "a100", Device("A", 10**5, 1e12, 1e12, "test"))
    told = needs(lab_cell, "a100")["fits"]
    assert "evaluation does not fit" in told
    assert "weights, gradients and the optimiser alone need" in told


def test_as_a_user(lab: Lab) -> None:
    told = lab.run("method=magnitude", "--plan", "--on=4090")
    assert "NVIDIA GeForce RTX 4090, 24 GB, 82.6 TFLOP/s" in told.out
    assert "lines of predictions, of unknown length" in told.out
    here = lab.run("method=magnitude", "--plan", "--on=cpu")
    assert "one product of matrices, measured now" in here.out


def test_what_is_refused(lab: Lab) -> None:
    words = [*lab.words, "method=magnitude"]
    assert "Known are h200, a100, 4090, cpu." in lab.refused("run", *words, "--plan", "--on", "h100")
    assert "--on belongs to --plan" in lab.refused("run", *words, "--on", "a100")
