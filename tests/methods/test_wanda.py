"""Wanda and its published variants, run as methods, against the originals' masks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.pruning.toy import ToyJob, pruner, random_blocks, two_blocks
from vlbench.calibration.statistics import Statistics
from vlbench.compression.masks import Keep

PARTS = [(i, part) for i in (0, 1) for part in ("fc1", "fc2")]


def run(arrays: Any, folder: Path, method: Any, towers: dict[str, int] | None = None) -> ToyJob:
    net, structure = two_blocks(arrays, towers)
    job = ToyJob(net, structure, torch.from_numpy(arrays["X"]).view(16, 8, 64), folder)
    method.apply(job)
    return job


@pytest.mark.parametrize(("pattern", "sparsity"), [("u50", 0.5), ("2of4", "2:4")])
def test_wanda_code_equals_the_original_over_two_blocks(
    shared: Path, tmp_path: Path, pattern: str, sparsity: Any
) -> None:
    arrays = np.load(shared / "oracles" / "pruners" / f"mlp2_sequential_{pattern}.npz")
    job = run(arrays, tmp_path, pruner("wanda", "wanda-code", sparsity=sparsity, calibration_samples=16))
    for i, part in PARTS:
        found = job.model.net.get_parameter(f"{i}.{part}.weight")
        assert torch.equal(found, torch.from_numpy(arrays[f"wanda_b{i}_{part}"]))


@pytest.mark.parametrize(("pattern", "sparsity"), [("u50", 0.5), ("2of4", "2:4")])
def test_magnitude_of_wandas_code(shared: Path, tmp_path: Path, pattern: str, sparsity: Any) -> None:
    arrays = np.load(shared / "oracles" / "pruners" / f"mlp2_sequential_{pattern}.npz")
    job = run(arrays, tmp_path, pruner("magnitude", "wanda-code", sparsity=sparsity))
    for i, part in PARTS:
        found = job.model.net.get_parameter(f"{i}.{part}.weight")
        assert torch.equal(found, torch.from_numpy(arrays[f"mag_b{i}_{part}"]))


@pytest.mark.parametrize(("pattern", "sparsity"), [("u50", 0.5), ("2of4", "2:4")])
@pytest.mark.parametrize(("propagate", "key"), [("pruned", "plain"), ("dense", "lora")])
def test_ressa_code_equals_the_original(
    shared: Path, tmp_path: Path, propagate: str, key: str, pattern: str, sparsity: Any
) -> None:
    """Its vision pruner: whole matrices, strictly below the threshold, with both propagations."""
    arrays = np.load(shared / "oracles" / "pruners" / f"ressa_vit_wanda_{pattern}.npz")
    method = pruner("wanda", "ressa-code", sparsity=sparsity, calibration_samples=16, propagate=propagate)
    job = run(arrays, tmp_path, method, {"vision": 2})
    for i, part in PARTS:
        wanted = torch.from_numpy(arrays[f"{key}_keep_b{i}_{part}"])
        assert torch.equal(job.changes.state.masks[f"{i}.{part}.weight"], wanted)


@pytest.mark.parametrize(("recipe", "gone"), [("ressa-code", 96), ("ecoflap-code", 97)])
def test_the_language_tower_of_those_recipes_is_compared_by_rows(tmp_path: Path, recipe: str, gone: int) -> None:
    """Vision by matrices: without ties "<" takes int(size * sparsity), "<=" one more. Rows elsewhere: exact counts."""
    net, structure = random_blocks((16, 12), (16, 12), towers={"vision": 1, "text": 1})
    job = ToyJob(net, structure, torch.randn(8, 3, 16, generator=torch.Generator().manual_seed(1)), tmp_path)
    pruner("wanda", recipe, calibration_samples=8, allocation="uniform").apply(job)
    away = {name: (~mask).sum(1) for name, mask in job.changes.state.masks.items()}
    assert int(away["0.fc1.weight"].sum()) == gone
    assert len(away["0.fc1.weight"].unique()) > 1
    assert away["1.fc1.weight"].tolist() == [8] * 12


@pytest.mark.parametrize("pattern", ["u50", "2of4", "4of8"])
def test_ties_and_zeros(shared: Path, tmp_path: Path, pattern: str) -> None:
    """Of equal scores the left one goes. The code's topk leaves their order open: where masks differ, scores tie."""
    arrays = np.load(shared / "oracles" / "pruners" / "ties_8x8.npz")
    weight, inputs = torch.from_numpy(arrays["W"]), torch.from_numpy(arrays["X"])
    sparsity: Any = 0.5 if pattern == "u50" else pattern.replace("of", ":")
    seen = Statistics.zeros(8, weight.device)
    seen.add(inputs)
    for name, key in (("wanda", "wanda"), ("magnitude", "mag")):
        method = pruner(name, "wanda-code", sparsity=sparsity)
        score = method.score(weight, seen)
        keep = Keep(0.5, method.options.group, method.options.rule, method.options.n_m)(score)
        theirs = torch.from_numpy(arrays[f"{key}_{pattern}_W"])
        ours = weight * keep
        if pattern == "u50":
            assert torch.equal(ours, theirs)
            continue
        in_groups = [w.abs().view(-1, method.options.n_m[1]).sort(1).values for w in (ours, theirs)]
        assert torch.allclose(*in_groups, atol=1e-6)  # the same weights up to ties


def test_a_killed_calibration_goes_on_after_the_last_block(tmp_path: Path) -> None:
    inputs = torch.randn(6, 3, 16, generator=torch.Generator().manual_seed(1))

    def job(folder: Path) -> ToyJob:
        net, structure = random_blocks((16, 12), (16, 8), (16, 12), (16, 12), towers={"vision": 2, "text": 2})
        return ToyJob(net, structure, inputs, folder)

    for name, words in (("wanda", {}), ("sparsegpt", {}), ("wanda", {"propagate": "dense", "group": "model"})):
        folder = tmp_path / f"{name}{len(words)}"
        whole = job(folder / "whole")
        pruner(name, calibration_samples=6, **words).apply(whole)
        method, seen = pruner(name, calibration_samples=6, **words), []
        broken = job(folder / "broken")
        plain = broken.here.progress

        def progress(
            what: str, done: int, total: int, text: str = "", seen: list[int] = seen, plain: Any = plain
        ) -> None:
            seen.append(done)
            if done == 3:
                raise KeyboardInterrupt
            plain(what, done, total, text)

        broken.here = replace(broken.here, progress=progress)
        with pytest.raises(KeyboardInterrupt):
            method.apply(broken)
        again = job(folder / "broken")
        blocks: list[int] = []
        again.here = replace(again.here, progress=lambda what, done, total, text, blocks=blocks: blocks.append(done))  # type: ignore[misc]
        pruner(name, calibration_samples=6, **words).apply(again)
        assert blocks == [4]
        for key, value in whole.model.net.state_dict().items():
            assert torch.equal(again.model.net.state_dict()[key], value)


@pytest.mark.parametrize(("name", "allocation"), [("wanda", "ecoflap-zeroth"), ("sparsegpt", "ecoflap")])
def test_an_allocation_is_not_looked_for_again_after_a_kill(tmp_path: Path, name: str, allocation: str) -> None:
    """What went on equals what was never killed; the loss is asked for by the captures alone. None of the killed run's
    hidden states stay on disk."""
    inputs = torch.randn(6, 3, 16, generator=torch.Generator().manual_seed(1))

    def job(folder: Path) -> ToyJob:
        net, structure = random_blocks((16, 12), (16, 8), (16, 12))
        return ToyJob(net, structure, inputs, folder)

    def method() -> Any:
        return pruner(name, calibration_samples=6, allocation=allocation)

    whole, broken = job(tmp_path / "whole"), job(tmp_path / "broken")
    method().apply(whole)

    def progress(what: str, done: int, total: int, text: str = "") -> None:
        if what == "calibrate" and done == 1:
            raise KeyboardInterrupt

    broken.here = replace(broken.here, progress=progress)
    with pytest.raises(KeyboardInterrupt):
        method().apply(broken)
    left = tmp_path / "broken" / "checkpoint" / name / "activations-killed"
    left.mkdir()
    again = job(tmp_path / "broken")
    method().apply(again)
    assert not left.exists()
    assert again.losses <= 7  # six samples, and the first of them once more
    assert again.changes.state.log == whole.changes.state.log
    for key, value in whole.model.net.state_dict().items():
        assert torch.equal(again.model.net.state_dict()[key], value)


def test_dead_columns_go_first_from_the_left(tmp_path: Path) -> None:
    """Inputs that are always 0 say that nothing is lost; where more than the target are dead, the left ones go."""
    net, structure = random_blocks((16, 12))
    inputs = torch.randn(8, 3, 16, generator=torch.Generator().manual_seed(1))
    inputs[:, :, [0, 3, 15]] = 0
    job = ToyJob(net, structure, inputs, tmp_path)
    pruner("wanda", sparsity=0.25, calibration_samples=8).apply(job)
    mask = job.changes.state.masks["0.fc1.weight"]
    assert not bool(mask[:, [0, 3, 15]].any())
    assert (~mask).sum(1).tolist() == [4] * 12
    inputs[:, :, :12] = 0
    job = ToyJob(random_blocks((16, 12))[0], structure, inputs, tmp_path / "more")
    pruner("wanda", sparsity=0.5, calibration_samples=8).apply(job)
    assert torch.equal(job.changes.state.masks["0.fc1.weight"], (torch.arange(16) >= 8).expand(12, 16))


def test_structured_wanda_cuts_what_it_silenced(tmp_path: Path) -> None:
    """The next block has seen what the cut model computes, and widths follow the target."""
    net, structure = random_blocks((16, 12), (16, 12))
    job = ToyJob(net, structure, torch.randn(6, 3, 16, generator=torch.Generator().manual_seed(1)), tmp_path)
    pruner("wanda", pattern="structured", sparsity=0.5, calibration_samples=6).apply(job)
    assert [tuple(p.shape) for p in job.model.net.parameters()] == [(6, 16), (16, 6)] * 2
    assert job.changes.state.pattern == "structured"
    first = job.changes.state.cuts[0].sites["mlp.0"][1]
    fresh, _ = random_blocks((16, 12), (16, 12))
    x = job.data.inputs
    hidden = torch.relu(fresh[0].fc1(x))  # type: ignore[index]
    score = [
        (fresh[0].fc1.weight.abs() * x.reshape(-1, 16).norm(dim=0)).square().sum(1),  # type: ignore[index]
        (fresh[0].fc2.weight.abs() * hidden.reshape(-1, 12).norm(dim=0)).square().sum(0),  # type: ignore[index]
    ]
    assert sorted((score[0] + score[1]).topk(6).indices.tolist()) == first
