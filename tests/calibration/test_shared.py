"""One calibration of the dense model for several targets and patterns."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from tests.lab import Lab
from vlbench.calibration import shared, walk
from vlbench.calibration.statistics import Statistics
from vlbench.machine.workers import World
from vlbench.records.record import read_record
from vlbench.tensors.checkpoint import CheckpointStore

DENSE = ("calibration_samples=4", "propagate=dense")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every calibration: the blocks that were skipped."""
    calls: list[int] = []
    looked = walk.block_statistics

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(options["skip"])
        return looked(*args, **options)

    monkeypatch.setattr(walk, "block_statistics", counted)
    return calls


def masks(folder: Path) -> dict[str, bytes]:
    """Cell -> its model's file, of all pruned cells in a folder of runs."""
    return {f.parents[1].name: f.read_bytes() for f in folder.glob("*/model/*.safetensors")}


def kept(folder: Path) -> dict[str, bytes]:
    """The statistics that are kept for other cells."""
    return {f.parents[1].name: f.read_bytes() for f in folder.glob("calibration/*/statistics/*.safetensors")}


def stop_after_one_block(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of wanda that ends as soon as the decision of its first block is on disk."""
    settled = walk.BlockByBlock._step

    def stops(self: walk.BlockByBlock, *given: Any) -> Any:
        step = settled(self, *given)

        def decided(block: Any, decide: Any) -> Any:
            step._settle(block, decide)
            raise KeyboardInterrupt

        return walk.Step(step.block, decided)

    with monkeypatch.context() as patch:
        patch.setattr(walk.BlockByBlock, "_step", stops)
        assert lab.run("method=wanda", "sparsity=0.5", *DENSE).code == 130


TARGETS = (
    ("sparsity=0.5",), ("sparsity=0.7",), ("sparsity=2:4",), ("sparsity=0.5", "group=model"),
    ("sparsity=0.5", "pattern=structured"),
)  # fmt: skip


def test_targets_and_patterns_share_one_calibration(lab: Lab, taken: list[int]) -> None:
    """And end as they would alone."""
    for words in TARGETS:
        assert lab.run("method=wanda", *DENSE, *words).code == 0
    assert len(taken) == 1
    for number, words in enumerate(TARGETS):
        assert lab.run("method=wanda", *DENSE, *words, f"--runs=alone{number}").code == 0
    assert len(taken) == 1 + len(TARGETS)
    alone = {cell: found for n in range(len(TARGETS)) for cell, found in masks(lab.folder / f"alone{n}").items()}
    assert masks(lab.folder / "runs") == alone
    assert len(alone) == len(TARGETS)
    for file in (lab.folder / "runs").glob("*/cell.json"):
        began = json.loads(file.read_bytes())["identity"]
        assert read_record(file.with_name("result.json")).identity == began, "what is shared was taken out of it"


def test_hessians_are_shared_too(lab: Lab, taken: list[int]) -> None:
    for words in TARGETS[:3]:
        assert lab.run("method=sparsegpt", *DENSE, *words).code == 0
    assert len(taken) == 1
    assert lab.run("method=sparsegpt", *DENSE, "sparsity=2:4", "--runs=alone").code == 0
    alone = masks(lab.folder / "alone")
    assert alone.items() <= masks(lab.folder / "runs").items()


@pytest.mark.parametrize(
    "words",
    [
        ("method=wanda", "seed=1"),
        ("method=wanda", "calibration_samples=5"),
        ("method=wanda", "statistics=float32"),
        ("method=wanda", "propagate=pruned"),
        ("method=sparsegpt",),
        ("method=uniform+wanda", "uniform.sparsity=0.5"),
    ],
    ids=" ".join,
)
def test_what_would_differ_is_taken_anew(lab: Lab, taken: list[int], words: tuple[str, ...]) -> None:
    assert lab.run("method=wanda", "sparsity=0.5", *DENSE).code == 0
    own = {word.partition("=")[0] for word in words}
    target = () if "uniform.sparsity" in own else ("sparsity=0.7",)
    rest = [word for word in DENSE if word.partition("=")[0] not in own]
    more = ("wanda.sparsity=0.7",) if not target else ()
    assert lab.run(*words, *target, *more, *rest).code == 0
    assert taken == [0, 0]


def test_a_calibration_that_was_interrupted_is_shared_once_it_is_whole(
    lab: Lab, taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cell goes on after its last block; what it saw before lies on disk, for the next cell as well."""
    stop_after_one_block(lab, monkeypatch)
    assert len(list((lab.folder / "runs").glob("calibration/*/blocks/0000"))) == 1
    assert lab.run("method=wanda", "sparsity=0.5", *DENSE).code == 0
    assert not list((lab.folder / "runs").glob("calibration/*/*blocks*"))
    assert lab.run("method=wanda", "sparsity=0.7", *DENSE).code == 0
    assert taken == [0, 1]
    for sparsity in (0.7, 0.5):
        assert lab.run("method=wanda", f"sparsity={sparsity}", *DENSE, "--runs=alone").code == 0
    assert masks(lab.folder / "alone") == masks(lab.folder / "runs")
    assert kept(lab.folder / "alone") == kept(lab.folder / "runs")


@pytest.mark.parametrize("harm", ["damaged", "removed"])
def test_without_what_it_saw_before_nothing_is_shared(lab: Lab, harm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the samples' sums is never taken for all of them; the cell itself does not need them."""
    stop_after_one_block(lab, monkeypatch)
    (part,) = (lab.folder / "runs").glob("calibration/*/blocks/0000/state.safetensors")
    part.write_bytes(b"no tensors") if harm == "damaged" else part.unlink()
    assert lab.run("method=wanda", "sparsity=0.5", *DENSE).code == 0
    assert not kept(lab.folder / "runs")


def test_other_data_and_other_workers_take_their_own(tmp_path: Path) -> None:
    """Sums over another number of workers add up in another order."""
    net = nn.Linear(2, 2)
    sums = {"weight": Statistics(torch.ones(2, dtype=torch.float64), 3)}

    def found(workers: int, **told: Any) -> bool:
        world = cast(World, SimpleNamespace(size=workers, leads=True, rank=0, share=lambda at, text: text))
        common = shared.SharedWith(tmp_path, {"weights": "w", "calibration": None, **told})
        with shared.shared_statistics(common, {"samples": 3}, net, world, lambda text: None) as had:
            if had.statistics is None:
                had.add(sums)
                had.save()
            return had.statistics is not None

    assert [found(1), found(1)] == [False, True]
    assert [found(2), found(2)] == [False, True]
    assert [found(1, calibration="c"), found(1, calibration="d"), found(1, calibration="c")] == [False, False, True]


def test_what_is_shared_comes_back_whole(tmp_path: Path) -> None:
    """The image's tokens apart from the text's, products, and one object where projections read one input."""
    net = nn.ModuleDict({name: nn.Linear(3, 2) for name in "qkv"})
    one, other = (Statistics.zeros(3, torch.device("cpu"), gram=True) for _ in range(2))
    one.add(torch.randn(2, 4, 3, dtype=torch.float64), image=torch.tensor([[True, True, False, False]] * 2))
    other.add(torch.randn(5, 4, 3, dtype=torch.float64))
    taken = {"q.weight": one, "k.weight": one, "v.weight": other}
    store = CheckpointStore(tmp_path / "statistics", {}, 0.0)
    first = shared.SharedStatistics(store, net)
    assert first.statistics is None
    first.add(taken)
    first.save()
    again = shared.SharedStatistics(store, net).statistics
    assert again is not None
    assert again["q.weight"] is again["k.weight"]
    assert again["v.weight"].vision is None
    pairs = [(again["q.weight"], one), (again["q.weight"].vision, one.vision), (again["v.weight"], other)]
    for found, wanted in cast(list[tuple[Statistics, Statistics]], pairs):
        assert found.samples == wanted.samples
        assert torch.equal(found.square_sum, wanted.square_sum)
        assert torch.equal(cast(Tensor, found.gram), cast(Tensor, wanted.gram))


def test_sums_that_are_too_large_are_not_kept(lab: Lab, taken: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "LARGEST", 100)
    for sparsity in (0.5, 0.7):
        assert lab.run("method=wanda", f"sparsity={sparsity}", *DENSE).code == 0
    assert len(taken) == 2
    assert not list((lab.folder / "runs").glob("calibration/*/statistics"))


def test_damaged_sums_are_told(lab: Lab) -> None:
    assert lab.run("method=wanda", "sparsity=0.5", *DENSE).code == 0
    (file,) = (lab.folder / "runs" / "calibration").glob("*/statistics/state.safetensors")
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    told = lab.run("method=wanda", "sparsity=0.7", *DENSE)
    assert told.code == 2
    assert "statistics is damaged: delete that folder" in told.err
