"""Cells that start from a compressed model: it is their baseline, and its cuts and zeros stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.lab import Lab
from vlbench import load
from vlbench.records.record import Record, read_record

SHORT = ("steps=2", "finetune.batch_size=4")


def run(lab: Lab, *words: str) -> tuple[Path, Record]:
    before = set((lab.folder / "runs").glob("*"))
    told = lab.run("--json", *words)
    assert told.code == 0, told
    record = Record.model_validate_json(told.out)
    made = {p.name for p in set((lab.folder / "runs").glob("*")) - before}
    assert record.cell in made
    return lab.folder / "runs" / record.cell, record


def test_finetuning_goes_on_from_a_cut_model(lab: Lab) -> None:
    first, cut = run(lab, "method=uniform", "sparsity=0.5")
    second, tuned = run(lab, "method=dense+finetune", f"checkpoint={first}/model", *SHORT)
    assert tuned.parameters.total == tuned.parameters.dense == cut.parameters.total
    assert (tuned.pattern, tuned.trained, tuned.label) == ("dense", True, first.name)
    assert tuned.macs == tuned.macs_dense == cut.macs
    old, new = load(first / "model").net.state_dict(), load(second / "model").net.state_dict()
    assert {k: v.shape for k, v in old.items()} == {k: v.shape for k, v in new.items()}
    assert any(not torch.equal(old[k], new[k]) for k in old)
    baseline = next(
        p for p in (lab.folder / "runs").glob("*dense*") if "finetune" not in p.name and _label(p) == first.name
    )
    assert read_record(baseline / "result.json").scores == cut.scores  # the compressed model, unchanged
    assert lab("time", second.name).code == lab("time", baseline.name).code == 0


def _label(folder: Path) -> str:
    return read_record(folder / "result.json").label


def test_it_can_be_cut_again_and_its_history_is_saved(lab: Lab) -> None:
    first, cut = run(lab, "method=uniform", "sparsity=0.5")
    second, again = run(lab, "method=uniform", "sparsity=0.5", f"checkpoint={first}/model")
    assert again.parameters.dense == cut.parameters.total
    assert again.sparsity == pytest.approx(0.5, abs=0.1)
    net = load(second / "model").net
    assert sum(p.numel() for p in net.parameters()) == again.parameters.total


def test_zeros_stay_zero(lab: Lab) -> None:
    first, _ = run(lab, "method=magnitude", "sparsity=0.5")
    second, tuned = run(lab, "method=dense+finetune", f"checkpoint={first}/model", *SHORT)
    old, new = load(first / "model").net, load(second / "model").net
    zero = 0
    for name, parameter in old.named_parameters():
        gone = parameter == 0
        if gone.float().mean() > 0.4 and parameter.dim() > 1:
            zero += int(gone.sum())
            assert bool((new.get_parameter(name)[gone] == 0).all())
    assert zero > 100
    assert tuned.sparsity == pytest.approx(0.5, abs=0.02)
    told = lab.run("method=uniform", f"checkpoint={first}/model")
    assert told.code == 2
    assert "a structured pruner cannot follow an unstructured one" in told.err


def test_the_same_model_elsewhere_is_the_same_cell(lab: Lab) -> None:
    first, _ = run(lab, "method=uniform", "sparsity=0.5")
    assert lab("export", first.name, "out").code == 0
    words = ("method=dense+finetune", *SHORT)
    plans = [lab.run("--plan", "--json", *words, f"checkpoint={where}") for where in (f"{first}/model", "out")]
    ids = [json.loads(plan.out)["cell"] for plan in plans]
    assert ids[0] == ids[1]
    assert ids[0] != json.loads(lab.run("--plan", "--json", *words).out)["cell"]


def test_a_compressed_model_of_another_card_is_refused(lab: Lab) -> None:
    first, _ = run(lab, "method=uniform", "sparsity=0.5")
    sentence = lab.refused_run("model=deit-tiny", f"checkpoint={first}/model")
    assert sentence == f"{first}/model is a compressed deit-mini, and this cell's model is deit-tiny."
    (first / "model" / "config.json").write_text("{}")
    assert "config.json is damaged" in lab.refused_run(f"checkpoint={first}/model")
