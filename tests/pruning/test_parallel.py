"""Calibration by several workers: their samples' sums are those of one process, and so is what they prune."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.calibration.pruned import calibrate
from tests.pruning.toy import ToyJob, pruner, random_blocks
from tests.workers import together
from vlbench.calibration.statistics import Statistics, joined
from vlbench.disk.storage import digest
from vlbench.machine.workers import ALONE, World
from vlbench.pruning.ecoflap import first_order, seeds_from, zeroth_order

INPUTS = torch.randn(8, 3, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
BLOCKS = random_blocks((16, 12), (16, 12), (16, 8), towers={"vision": 1, "language": 2})


def toy(folder: Path, world: World) -> ToyJob:
    net, structure = deepcopy(BLOCKS)
    job = ToyJob(net.double(), structure, INPUTS, folder)
    job.here = replace(job.here, world=world)
    return job


@pytest.mark.parametrize("size", [2, 3, 9])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wanda", {}),
        ("wanda", {"propagate": "dense", "pattern": "structured"}),
        ("wanda", {"allocation": "ecoflap-zeroth"}),
        ("sparsegpt", {}),
        ("taylor", {"allocation": "ecoflap"}),
        ("obd", {}),
        ("magnitude", {}),
    ],
)
def test_the_workers_prune_what_one_process_prunes(tmp_path: Path, name: str, words: dict[str, Any], size: int) -> None:
    """Eight samples over two, over three, and over nine workers, who cannot share them."""
    given = {**words, **({} if name == "magnitude" else {"calibration_samples": 8})}

    def work(world: World) -> tuple[dict[str, Tensor], dict[str, Any]]:
        job = toy(tmp_path / f"{world.size}", world)
        pruner(name, sparsity=0.5, **given).apply(job)
        return {n: p.detach() for n, p in job.model.net.named_parameters()}, job.changes.state.log

    alone, log = work(ALONE)
    found = together(size, work)
    for weights, told in found:
        assert told == log
        for key, weight in alone.items():
            assert weights[key].shape == weight.shape
            assert torch.equal(weights[key] == 0, weight == 0)
            assert torch.allclose(weights[key], weight, rtol=0, atol=1e-10)
            assert torch.equal(weights[key], found[0][0][key])


def test_statistics_come_from_all_samples_and_every_worker_has_the_same(tmp_path: Path) -> None:
    """Sums, Gram matrices, and what is told apart of an image's tokens."""
    image = torch.tensor([[True, False, False]])

    def work(world: World) -> dict[str, Statistics]:
        net, structure = deepcopy(BLOCKS)
        net.double()
        own = INPUTS[world.rank :: world.size]
        found: dict[str, Statistics] = {}
        calibrate(
            net, structure, [lambda x=x: net(x[None]) for x in own], lambda _, seen: found.update(seen),  # type: ignore[misc]
            gram=True, propagate="dense", world=world, image_tokens=[image] * len(own),
        )  # fmt: skip
        return found

    alone, workers = work(ALONE), together(3, work)
    for found in workers:
        for name, seen in alone.items():
            assert found[name].samples == seen.samples == 8
            for theirs, own in ((found[name], seen), (found[name].vision, seen.vision)):
                assert theirs is not None
                assert own is not None
                assert theirs.samples == own.samples
                assert torch.allclose(theirs.square_sum, own.square_sum, rtol=1e-12)
                assert torch.allclose(theirs.gram, own.gram, rtol=1e-12, atol=1e-12)  # type: ignore[arg-type]
                assert torch.equal(theirs.gram, workers[0][name].gram if theirs is found[name] else theirs.gram)  # type: ignore[arg-type]


def test_matrices_that_one_worker_tells_apart_are_told_apart_in_all() -> None:
    """Worker 0 has seen q and k with one input, worker 1 with two; no image's tokens came to worker 0."""

    def seen(value: float, *, vision: bool = False) -> Statistics:
        own = Statistics(torch.full((2,), value), 1)
        own.vision = Statistics(torch.full((2,), value / 2), 1) if vision else None
        return own

    def work(world: World) -> dict[str, Any]:
        same = seen(1.0)
        found = {"q": same, "k": same, "v": same}
        if world.rank == 1:
            other = seen(10.0, vision=True)
            found = {"q": seen(100.0, vision=True), "k": other, "v": other}
        told = joined(found, world)
        assert told["k"] is told["v"]
        return {
            n: (s.samples, s.square_sum.tolist(), s.vision and s.vision.square_sum.tolist()) for n, s in told.items()
        }

    apart = {"q": (2, [101.0] * 2, [50.0] * 2), "k": (2, [11.0] * 2, [5.0] * 2), "v": (2, [11.0] * 2, [5.0] * 2)}
    assert together(2, work) == [apart, apart]


@pytest.mark.parametrize("size", [2, 3])
def test_scores_of_blocks_by_random_directions_are_those_of_one_process_to_the_bit(size: int) -> None:
    def work(world: World) -> str:
        net, structure = deepcopy(BLOCKS)
        net.double()
        losses = [lambda x=x: _square(net, x) for x in INPUTS.split(2)[:3]]  # type: ignore[misc]
        return digest(zeroth_order(net, list(structure.matrices), losses, seeds_from(3), world=world))  # type: ignore[arg-type]

    def first(world: World) -> dict[str, float]:
        net, structure = deepcopy(BLOCKS)
        net.double()
        losses = [(lambda x=x: _square(net, x), len(x)) for x in INPUTS.split(3)]  # type: ignore[misc]
        return first_order(net, list(structure.matrices), losses, world)  # type: ignore[arg-type]

    assert together(size, work) == [work(ALONE)] * size
    alone = first(ALONE)
    assert all(found == pytest.approx(alone, rel=1e-12) for found in together(size, first))


def _square(net: nn.Module, x: Tensor) -> Tensor:
    return F.mse_loss(net(x), torch.zeros_like(x))
