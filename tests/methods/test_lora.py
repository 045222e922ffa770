"""LoRA by peft after every pruner: merged it fills the zeros and says so; apart it keeps them, and its file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.lab import Lab
from tests.methods.restored import PRUNERS, chain, is_plain, made, pruned, reloads, resumes, run, zeros
from tests.methods.test_sparselora import ALL
from vlbench import load
from vlbench.checks.tiny import Outcome, Workshop
from vlbench.compression.saved import ADAPTERS, MANIFEST, copy_saved, load_model, save_model
from vlbench.disk.digests import file_digest
from vlbench.disk.storage import read_sealed, write_sealed
from vlbench.errors import UserError
from vlbench.machine.ui import Screen
from vlbench.nn.adapted import SideBranch
from vlbench.records.record import Record, read_record
from vlbench.run.runner import Runner

pytest.importorskip("peft", reason="needs peft (the extra of that name)")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return made("lora", tmp_path_factory.mktemp("lora"))


@pytest.mark.parametrize("pattern", PRUNERS)
def test_merged_it_is_dense_and_says_so(workshop: Workshop, tmp_path: Path, pattern: str) -> None:
    before, after = pruned(workshop, pattern), run(workshop, chain("lora", pattern))
    assert bool(zeros(before)) == (pattern != "structured")
    assert zeros(after) == 0
    assert not after.state.masks
    assert after.state.pattern == ("structured" if pattern == "structured" else "dense")
    assert is_plain(after, workshop)
    reloads(workshop, after, tmp_path / "saved")


@pytest.mark.parametrize("pattern", PRUNERS)
def test_apart_it_is_sparse_and_has_more_parameters(workshop: Workshop, tmp_path: Path, pattern: str) -> None:
    before, after = pruned(workshop, pattern), run(workshop, chain("lora", pattern, merge="false", rank="2"))
    loaded = reloads(workshop, after, tmp_path / "saved")
    shapes = before.model.structure().matrices.values()
    own = sum(2 * (rows + columns) for rows, columns in shapes)
    for outcome in (after, loaded):
        count = sum(p.numel() for p in outcome.model.net.parameters())
        assert count == sum(p.numel() for p in before.model.net.parameters()) + own
        assert outcome.state.pattern == before.state.pattern
        for name in before.model.structure().matrices:
            assert torch.equal(outcome.model.net.get_parameter(name), before.model.net.get_parameter(name))
    assert set(after.state.adapters.values()) == {8.0}
    assert not torch.equal(workshop.outputs(before.model), workshop.outputs(after.model))
    weights, adapters = (load_file(tmp_path / "saved" / name) for name in ("model.safetensors", ADAPTERS))
    assert weights.keys() == before.model.net.state_dict().keys()
    assert len(adapters) == 2 * len(shapes)


def test_merged_and_apart_are_one_function(workshop: Workshop) -> None:
    one, two = (run(workshop, chain("lora", "unstructured", merge=word)) for word in ("true", "false"))
    torch.testing.assert_close(workshop.outputs(one.model), workshop.outputs(two.model), rtol=1e-4, atol=1e-5)


def test_apart_is_peft_bit_for_bit(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is evaluated and saved computes what was trained."""
    module = sys.modules[type(workshop.links({})[1].method(workshop.links({})[1].options)).__module__]
    plain, seen = module._unwrap, []

    def unwrap(net: Any, ranks: Any, **how: Any) -> Any:
        batch = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            seen.append(net.eval()(batch))
        found = plain(net, ranks, **how)
        with torch.inference_mode():
            seen.append(net.eval()(batch))
        return found

    monkeypatch.setattr(module, "_unwrap", unwrap)
    run(workshop, chain("lora", "unstructured", merge="false"))
    assert torch.equal(*seen)


@pytest.mark.parametrize("pattern", PRUNERS)
@pytest.mark.parametrize("merge", ["true", "false"])
def test_a_killed_run_ends_the_same(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, pattern: str, merge: str
) -> None:
    resumes(workshop, chain("lora", pattern, merge=merge, **ALL), monkeypatch, after=2)


@pytest.mark.parametrize("merge", ["true", "false"])
def test_a_killed_tuning_ends_the_same(workshop: Workshop, monkeypatch: pytest.MonkeyPatch, merge: str) -> None:
    words = chain("lora", "n:m", steps="2", tune="1e-3,3e-2", merge=merge)
    resumes(workshop, words, monkeypatch, after=3)
    tuned = run(workshop, words)
    assert bool(tuned.state.masks) == bool(tuned.state.adapters) == (merge == "false")


def test_ranks_and_targets_are_pefts(workshop: Workshop) -> None:
    words = chain("lora", "unstructured", merge="false", rank="8", ranks="vision:4", targets="qkv,fc2")
    outcome = run(workshop, words)
    layers = {n: m for n, m in outcome.model.net.named_modules() if isinstance(m, SideBranch)}
    assert layers.keys() == outcome.state.adapters.keys()
    assert {n.rpartition(".")[2] for n in layers} == {"qkv", "fc2"}
    assert {(len(m.lora_a), m.lora_b.shape[1], m.scaling) for m in layers.values()} == {(4, 4, 4.0)}


def test_only_what_was_filled_is_dense(workshop: Workshop) -> None:
    outcome = run(workshop, chain("lora", "n:m", targets="qkv"))
    assert not any("qkv" in name for name in outcome.state.masks)
    assert len(outcome.state.masks) == 3 * 4
    assert outcome.state.pattern == "2:4"
    assert 0 < zeros(outcome) < outcome.size // 2


def test_nothing_is_pruned_where_adapters_stand_apart(workshop: Workshop) -> None:
    outcome = run(workshop, chain("lora", "unstructured", merge="false"))
    job = workshop.job(outcome, 0)
    with pytest.raises(UserError, match="nothing can be pruned where adapters stand beside weights: train them with"):
        job.changes.mask({}, "unstructured")
    outcome.state.masks = {}
    with pytest.raises(UserError, match="nothing can be pruned"):
        job.trial("x").changes.cut({})
    link = workshop.links(chain("lora", "unstructured"))[1]
    with pytest.raises(UserError, match=r"blocks.0.attn.qkv has an adapter beside its weight already"):
        link.method(link.options).apply(job)


def test_an_adapter_of_another_model(workshop: Workshop, tmp_path: Path) -> None:
    outcome = run(workshop, chain("lora", "unstructured", merge="false"))
    save_model(tmp_path / "saved", outcome.model, outcome.state)
    tensors = load_file(tmp_path / "saved" / ADAPTERS)
    name = "blocks.0.attn.qkv.lora_a"
    for other, sentence in [
        ({**tensors, name: torch.zeros(8, 5)}, r"A, B and the weight of blocks.0.attn.qkv are \(8, 5\) and"),
        ({k: v for k, v in tensors.items() if k != name}, "blocks.0.attn.qkv is not in both"),
    ]:
        with pytest.raises(UserError, match=rf"adapters.bin is of another model: {sentence}"):
            load_model(resealed(tmp_path, other))
    folder = resealed(tmp_path, tensors)
    save_file({k: v + 1 for k, v in tensors.items()}, folder / ADAPTERS)
    with pytest.raises(UserError, match="is damaged"):
        load_model(folder)


def resealed(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """The saved model with other adapters, whose digest its manifest has."""
    target = folder / f"other-{len(list(folder.iterdir()))}"
    target.mkdir()
    copy_saved(folder / "saved", target)
    save_file(tensors, target / ADAPTERS)
    manifest = read_sealed(target / MANIFEST)
    manifest["files"][ADAPTERS] = file_digest(target / ADAPTERS)
    write_sealed(target / MANIFEST, {k: v for k, v in manifest.items() if k != "seal"})
    return target


# As commands -------------------------------------------------------------------------------------------------------


def test_without_peft_the_extra_is_named(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    (lab.folder / "runs").mkdir()
    assert lab.refused_run("method=magnitude+lora") == 'lora needs peft: pip install "vlbench[peft]".'


def test_alone_it_says_which_chain_was_meant(lab: Lab) -> None:
    told = lab.refused_run("method=lora")
    assert told == "method=lora has nothing to restore: write magnitude+lora, or dense+lora for the control."


def row(lab: Lab, *words: str) -> tuple[Path, Record]:
    told = lab.run("--json", *words, "lora.steps=2", "lora.batch_size=4", "lora.ranks=vision:2")
    assert told.code == 0, told
    folder = lab.folder / "runs" / json.loads(told.out)["cell"]
    return folder, read_record(folder / "result.json")


def test_the_row_shows_that_merging_densifies(lab: Lab) -> None:
    _, merged = row(lab, "method=magnitude+lora", "sparsity=2:4")
    _, apart = row(lab, "method=magnitude+lora", "sparsity=2:4", "merge=false")
    assert (merged.sparsity_target, merged.sparsity, merged.pattern) == ("2:4", 0.0, "dense")
    assert merged.parameters.total == merged.parameters.dense
    assert merged.parameters.removed == 0
    assert (apart.sparsity, apart.pattern) == (0.5, "2:4")
    assert apart.parameters.total > apart.parameters.dense
    assert apart.macs is not None
    assert merged.macs is not None
    assert apart.macs > merged.macs


def test_a_model_with_adapters_goes_on_and_is_exported(lab: Lab) -> None:
    folder, apart = row(lab, "method=magnitude+lora", "sparsity=0.5", "merge=false")
    assert lab("export", folder.name, "out").code == 0
    assert not (lab.folder / "out" / "load.py").exists()
    again = Outcome(load(lab.folder / "out"), load_model(folder / "model")[1], 0)
    assert sum(p.numel() for p in again.model.net.parameters()) == apart.parameters.total


def test_on_a_model_of_two_modalities(tmp_path: Path) -> None:
    words = {
        "task": "vqav2", "method": "wanda+lora", "language": "0.7", "budget": "ratio", "vision": "0",
        "calibration_samples": "8", "limit": "16",
        "evaluation.batch_size": "16", "lora.steps": "2", "lora.batch_size": "8", "loss": "kd",
    }  # fmt: skip
    record = Runner(tmp_path, Screen(quiet=True)).run(words)
    assert record.parameters.towers["vision"] == 0
    assert record.sparsity == 0
    assert record.pattern == "dense"


@pytest.mark.parametrize("schedule", ["warmup", "mixed", "dynamic"])
def test_a_rank_schedule_is_merged_saved_and_resumed(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, schedule: str
) -> None:
    words = {"rank_schedule": schedule, "rank": "2", "steps": "6", "dropout": "0"}
    one, two = (run(workshop, chain("lora", "unstructured", merge=word, **words)) for word in ("true", "false"))
    torch.testing.assert_close(workshop.outputs(one.model), workshop.outputs(two.model), rtol=1e-4, atol=1e-5)
    assert not torch.equal(workshop.outputs(one.model), workshop.outputs(pruned(workshop, "unstructured").model))
    kept = [len(p) for n, p in two.model.net.named_parameters() if n.endswith("lora_a")]
    assert sum(kept) <= 2 * len(kept) + kept.count(1)  # one that has lost all of its rank keeps a column of zeros
    reloads(workshop, two, tmp_path / "saved")
    resumes(workshop, chain("lora", "unstructured", merge="false", **words), monkeypatch, after=3)
