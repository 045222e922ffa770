"""SparseLoRA after every pruner: zeros stay, a killed run ends the same, a saved model reloads, mistakes are told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.lab import Lab
from tests.methods.restored import PRUNERS, chain, is_plain, made, pruned, reloads, resumes, run, zeros
from vlbench.cell.resolve import resolve
from vlbench.checks.tiny import Workshop
from vlbench.machine.ui import Screen
from vlbench.records.record import Record
from vlbench.run.runner import Runner

ALL = {"dropout": "0.3", "loss": "both", "kd_weight": "0.3", "clip": "1", "weight_decay": "0.1"}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return made("sparselora", tmp_path_factory.mktemp("sparselora"))


@pytest.mark.parametrize("pattern", PRUNERS)
def test_zeros_are_exactly_the_pruners(workshop: Workshop, tmp_path: Path, pattern: str) -> None:
    before, after = pruned(workshop, pattern), run(workshop, chain("sparselora", pattern))
    assert after.state.pattern == before.state.pattern
    assert after.state.masks.keys() == before.state.masks.keys()
    moved = 0
    for name in before.model.structure().matrices:
        old, new = (o.model.net.get_parameter(name) for o in (before, after))
        assert torch.equal(old == 0, new == 0)
        moved += int((old != new).any())
    assert moved == len(before.model.structure().matrices)
    others = before.model.net.state_dict().keys() - before.model.structure().matrices.keys()
    assert all(torch.equal(before.model.net.state_dict()[k], after.model.net.state_dict()[k]) for k in others)
    assert is_plain(after, workshop)
    assert zeros(reloads(workshop, after, tmp_path / "saved")) == zeros(before)


@pytest.mark.parametrize("pattern", PRUNERS)
@pytest.mark.parametrize("after", [0, 2])
def test_a_killed_run_ends_the_same(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, pattern: str, after: int
) -> None:
    resumes(workshop, chain("sparselora", pattern, **ALL), monkeypatch, after=after)


def test_a_killed_tuning_ends_the_same(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the second rate; what it keeps has its zeros."""
    words = chain("sparselora", "n:m", steps="2", tune="1e-3,3e-2", recompute="true")
    resumes(workshop, words, monkeypatch, after=3)
    tuned = run(workshop, words)
    assert zeros(tuned) == tuned.size // 2
    assert tuned.state.log["sparselora"]["n_tuned"] == 2
    assert is_plain(tuned, workshop)


def same(workshop: Workshop, a: dict[str, str], b: dict[str, str]) -> bool:
    one, two = (run(workshop, words).model.net.state_dict() for words in (a, b))
    return all(torch.equal(one[k], two[k]) for k in one)


CHANGES = [
    {"rank": "2"}, {"alpha": "4"}, {"dropout": "0"}, {"targets": "qkv"}, {"loss": "kd", "kd_weight": "0.1"},
    {"temperature": "5"}, {"ranks": "vision:3"},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_every_option_counts(workshop: Workshop, change: dict[str, str]) -> None:
    words = chain("sparselora", "unstructured", **ALL)
    assert not same(workshop, words, {**words, **{f"sparselora.{k}": v for k, v in change.items()}})


def test_recompute_changes_memory_alone(workshop: Workshop) -> None:
    words = chain("sparselora", "unstructured", **ALL)
    one, two = (run(workshop, {**words, "sparselora.recompute": word}).model for word in ("true", "false"))
    for a, b in zip(one.net.parameters(), two.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_first_step_starts_at_the_pruned_model(workshop: Workshop) -> None:
    """B is zero: without a step nothing has changed."""
    before, after = pruned(workshop, "unstructured"), run(workshop, chain("sparselora", "unstructured", steps="0"))
    assert torch.equal(workshop.outputs(before.model), workshop.outputs(after.model))


def test_the_papers_recipe() -> None:
    """What the published code does, and 24,960 of its 25,000 captions: whole batches.
    Vicuna's are half as large."""
    words = {"task": "coco_caption", "method": "wanda+sparselora", "recipe": "paper", "suite": "full"}
    options = resolve(words).links[1].options
    assert (options.ranks, options.alpha, options.dropout) == ("vision?:4,language?:8,qformer?:2", 16.0, 0.0)
    assert (options.loss, options.kd_weight, options.temperature) == ("both", 0.1, 1.0)
    assert options.steps * options.batch_size == 24960
    assert [options.lr_at(step) for step in (0, 100, 389)] == [1e-4] * 3
    assert (options.weight_decay, options.clip, options.optimiser) == (0.0, 0.0, "adamw")
    vicuna = resolve({**words, "method": "wanda+lora", "model": "instructblip-vicuna-7b"}).links[1].options
    assert (vicuna.steps, vicuna.batch_size, vicuna.ranks) == (781, 32, options.ranks)


# As commands -------------------------------------------------------------------------------------------------------


WRONG = [
    ("method=sparselora", "sparselora has nothing to restore: write magnitude+sparselora, or dense+sparselora for the"),
    (
        "method=magnitude+sparselora ranks=vision:17",
        "rank 17 is too large for blocks.0.attn.qkv, a matrix of 48 x 16",
    ),
    (
        "method=magnitude+sparselora targets=query,c_fc",
        "matches none of the matrices here, which end in fc1, fc2, proj",
    ),
    ("method=magnitude+sparselora ranks=text:4", "no tower or module 'text'. Its towers: vision (vision)."),
    ("method=magnitude+sparselora ranks=vision", "'vision' should be a tower and its rank, like vision:4"),
    (
        "method=magnitude+sparselora loss=task temperature=2.5",
        "temperature= has a meaning with loss=kd or loss=both only",
    ),
    ("method=magnitude+sparselora loss=momentum", "loss=momentum should be 'task', 'kd' or 'both'"),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG)
def test_mistakes_are_told_before_anything_is_evaluated(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, words: str, sentence: str
) -> None:
    def evaluated(*_: object) -> None:
        raise AssertionError("a model was evaluated")

    monkeypatch.setattr(Runner, "_evaluate", evaluated)
    (lab.folder / "runs").mkdir()
    told = lab.refused_run(*words.split())
    assert sentence in told
    assert "\n" not in told


def test_they_are_told_as_well_where_the_dense_model_is_done(lab: Lab) -> None:
    assert lab.run("method=dense").code == 0
    assert "rank 17 is too large" in lab.refused_run("method=magnitude+sparselora", "ranks=vision:17")


def test_a_teacher_that_does_not_fit_is_told_first(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlbench.machine.memory.free_memory", lambda device: 7000)
    (lab.folder / "runs").mkdir()
    told = lab.refused_run("method=magnitude+sparselora", "loss=kd")
    assert "loss=kd needs the dense model beside the pruned one, " in told
    assert " GB more, and cpu has 7e-06 GB left: use loss=task" in told
    # Finetuning asks when it makes the copy.
    told = lab.run("method=magnitude+finetune", "loss=kd", "finetune.steps=1", "finetune.batch_size=4").err
    assert "loss=kd needs the dense model beside the pruned one" in told


# On models of the package ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize(("task", "sparsity"), [("vqav2", "2:4"), ("coco_retrieval", "0.7")])
def test_the_row_has_the_pruners_sparsity(runs: Path, task: str, sparsity: str) -> None:
    words = {
        "task": task, "method": "wanda+sparselora", "sparsity": sparsity, "calibration_samples": "8", "limit": "16",
        "evaluation.batch_size": "16", "sparselora.steps": "2", "sparselora.batch_size": "8", "loss": "both",
        "ranks": "vision:2,language:4",
    }  # fmt: skip
    record: Record = Runner(runs, Screen(quiet=True)).run(words)
    target = 0.5 if sparsity == "2:4" else float(sparsity)
    assert record.sparsity == pytest.approx(target, abs=0.012)  # rows of 64 columns round down
    assert (record.pattern, record.trained) == ("2:4" if sparsity == "2:4" else "unstructured", True)
    assert record.budget.steps == 2
