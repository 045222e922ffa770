"""Block-by-block calibration against the originals' two-block runs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vlbench.data.images import ImageStore
from vlbench.data.mini import mini_root
from vlbench.errors import RunFailed
from vlbench.job import Job
from vlbench.plugins import table
from vlbench.pruning.calibration import Statistics, calibrate, collected
from vlbench.pruning.masks import apply_masks, keep_fraction, keep_n_of_m
from vlbench.structure import Block, Structure, Tower, ffn_site
from vlbench.weights import locate


class Residual(nn.Module):
    """x + fc2(relu(fc1 x)), without biases: the originals' toy block."""

    def __init__(self, up: Tensor, down: Tensor) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, 48, bias=False), nn.Linear(48, 64, bias=False)
        self.fc1.weight.data, self.fc2.weight.data = up.clone(), down.clone()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.fc2(torch.relu(self.fc1(x)))
        return out


def two_blocks(arrays: Mapping[str, np.ndarray]) -> tuple[nn.Module, Structure]:
    def weight(key: str) -> Tensor:
        return torch.from_numpy(arrays[key])

    net = nn.Sequential(*(Residual(weight(f"b{i}_fc1"), weight(f"b{i}_fc2")) for i in (0, 1)))
    blocks = []
    for i in (0, 1):
        site = ffn_site(net, f"mlp.{i}", modality="language", up=f"{i}.fc1", down=f"{i}.fc2", activation=torch.relu)
        blocks.append(Block(str(i), (site,)))
    return net, Structure((Tower("mlp", tuple(blocks)),))


def walk(arrays: Mapping[str, np.ndarray], choose, propagate: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:  # type: ignore[no-untyped-def]
    """(keep masks, Wanda's scaler rows) of the toy, by our engine, one sample of 8 tokens a run."""
    net, structure = two_blocks(arrays)
    masks: dict[str, Tensor] = {}
    scalers: dict[str, Tensor] = {}

    def prune(block: Block, statistics: Mapping[str, Statistics]) -> None:
        for name, seen in statistics.items():
            masks[name] = choose(net.get_parameter(name).detach().abs() * seen.norm.float())
            scalers[name] = seen.square_sum / seen.samples
        if propagate == "pruned":
            apply_masks(net, {n: masks[n] for n in statistics})

    samples = torch.from_numpy(arrays["X"]).view(16, 1, 8, 64)
    calibrate(net, structure, [lambda x=x: net(x) for x in samples], prune, propagate=propagate)  # type: ignore[arg-type, misc]
    return masks, scalers


@pytest.mark.parametrize("pattern", ["u50", "2of4"])
def test_sequential_wanda_equals_the_original(shared: Path, pattern: str) -> None:
    arrays = np.load(shared / "oracles" / "pruners" / f"mlp2_sequential_{pattern}.npz")

    def choose(score: Tensor) -> Tensor:
        return keep_fraction(score, 0.5, "row") if pattern == "u50" else keep_n_of_m(score, 2, 4)

    masks, scalers = walk(arrays, choose, "pruned")
    for i in (0, 1):
        for part in ("fc1", "fc2"):
            name = f"{i}.{part}.weight"
            assert torch.equal(masks[name], torch.from_numpy(arrays[f"wanda_b{i}_{part}"]) != 0)
            recorded = torch.from_numpy(arrays[f"wanda_scaler_b{i}_{part}"]).double()
            assert torch.allclose(scalers[name], recorded, rtol=1e-5)


@pytest.mark.parametrize(("propagate", "key"), [("pruned", "plain"), ("dense", "lora")])
def test_whole_matrix_wanda_of_ressa_with_both_propagations(shared: Path, propagate: str, key: str) -> None:
    arrays = np.load(shared / "oracles" / "pruners" / "ressa_vit_wanda_u50.npz")
    masks, _ = walk(arrays, lambda score: keep_fraction(score, 0.5, "matrix", "<"), propagate)
    for i in (0, 1):
        for part in ("fc1", "fc2"):
            assert torch.equal(masks[f"{i}.{part}.weight"], torch.from_numpy(arrays[f"{key}_keep_b{i}_{part}"]))


def test_inputs_that_are_not_finite_are_named() -> None:
    rng = np.random.default_rng(0)
    arrays = {f"b{i}_fc1": rng.standard_normal((48, 64), dtype=np.float32) for i in (0, 1)}
    arrays |= {f"b{i}_fc2": rng.standard_normal((64, 48), dtype=np.float32) for i in (0, 1)}
    arrays["X"] = np.full((128, 64), np.inf, dtype=np.float32)
    with pytest.raises(RunFailed, match=r"0\.fc1\.weight \(block 0\)"):
        walk(arrays, lambda score: score > 0, "pruned")


def test_dense_statistics_equal_those_of_plain_runs(tmp_path: Path) -> None:
    """On BLIP with shared states: what the walk sees block by block is what hooks see in whole forward passes."""
    cls = table("models").get("blip-vqa-mini").load()
    card = next(c for c in cls.cards if c.name == "blip-vqa-mini")
    model = cls.open(card, locate(card.checkpoint, card.revision, {}))
    task_class = table("tasks").get("vqav2").load()
    task = task_class(mini_root("vqav2"), task_class.Options())
    job = Job(model, task, seed=0, folder=tmp_path, store=ImageStore(card.image))
    runs = [partial(job.loss, batch) for batch in job.calibration(6, 1)]
    structure = model.structure()
    every = Block("", structure.sites)
    with collected(model.net, every) as wanted, torch.no_grad():
        for run in runs:
            run()
    seen: dict[str, Statistics] = {}
    calibrate(model.net, structure, runs, lambda _, found: seen.update(found), propagate="dense")
    assert list(seen) == list(structure.matrices)
    for name, found in seen.items():
        assert found.samples == wanted[name].samples > 0
        assert torch.allclose(found.square_sum, wanted[name].square_sum, rtol=1e-4)
