"""Block-by-block calibration against the originals' two-block runs."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.calibration.pruned import calibrate
from tests.nn.test_kinds import adopted, every_kind, kinds
from tests.pruning.toy import random_blocks, two_blocks
from vlbench.calibration import capture as capture_module
from vlbench.calibration.activations import Activations, Room
from vlbench.calibration.blocks import collect
from vlbench.calibration.capture import capture_all
from vlbench.calibration.statistics import Statistics, collected
from vlbench.calibration.tower import capture_tower
from vlbench.compression.masks import Keep, apply_masks, keep_fraction, keep_n_of_m
from vlbench.errors import RunFailed
from vlbench.images.pipeline import ImageStore
from vlbench.job import Job, Surroundings
from vlbench.mini.world import mini_root
from vlbench.plugins.table import table
from vlbench.structure import Block, Structure
from vlbench.tensors.locate import locate


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


@pytest.mark.parametrize("pattern", ["u50", "2of4"])
@pytest.mark.parametrize(("propagate", "key"), [("pruned", "plain"), ("dense", "lora")])
def test_whole_matrix_wanda_of_ressa_with_both_propagations(
    shared: Path, pattern: str, propagate: str, key: str
) -> None:
    arrays = np.load(shared / "oracles" / "pruners" / f"ressa_vit_wanda_{pattern}.npz")

    def choose(score: Tensor) -> Tensor:
        return keep_fraction(score, 0.5, "matrix", "<") if pattern == "u50" else keep_n_of_m(score, 2, 4)

    masks, _ = walk(arrays, choose, propagate)
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


@pytest.fixture
def vqa(tmp_path: Path) -> Job:
    """BLIP with shared states, on the mini world."""
    cls = table("models").get("blip-vqa-mini").load()
    card = next(c for c in cls.cards if c.name == "blip-vqa-mini")
    model = cls.open(card, locate(card.checkpoint, card.revision, {}))
    task_class = table("tasks").get("vqav2").load()
    task = task_class(mini_root(task_class.mini_world()), task_class.Options())
    return Job(model, task, ImageStore(card.image), Surroundings(0, tmp_path))


def test_dense_statistics_equal_those_of_plain_runs(vqa: Job) -> None:
    """What the walk sees block by block is what hooks see in whole forward passes."""
    runs = [partial(vqa.loss, batch) for batch in vqa.data.calibration(6, 1)]
    structure = vqa.changes.structure
    every = Block("", structure.sites)
    with collected(vqa.model.net, every) as wanted, torch.no_grad():
        for run in runs:
            run()
    seen = collect(vqa.model.net, structure, runs)
    assert list(seen) == list(structure.matrices)
    for name, found in seen.items():
        assert found.samples == wanted[name].samples > 0
        assert torch.allclose(found.square_sum, wanted[name].square_sum, rtol=1e-4)


def test_batches_with_padding_give_the_statistics_of_single_samples(vqa: Job) -> None:
    """Questions of four lengths in one batch; the decoder reads their padded states."""
    single, batched = (
        collect(vqa.model.net, vqa.changes.structure, [partial(vqa.loss, b) for b in vqa.data.calibration(8, size)])
        for size in (1, 4)
    )
    for name, seen in batched.items():
        assert seen.samples == single[name].samples
        assert torch.allclose(seen.square_sum, single[name].square_sum, rtol=1e-4), name


def one_by_one(net: nn.Module, structure: Structure, runs: list, prune) -> None:  # type: ignore[no-untyped-def, type-arg]
    """The plain walk: before each block the whole model is run anew, and its inputs are read off."""
    for tower in structure.towers:
        for block in tower.blocks:
            with collected(net, block) as seen, torch.no_grad():
                for run in runs:
                    run()
            prune(block, seen)


@every_kind
def test_the_walk_equals_running_the_model_anew_before_each_block(kind: kinds.Kind) -> None:
    """For every attention kind, pruning half of each matrix on the way. The short captures must change nothing."""
    found = []
    for walk in (one_by_one, calibrate):
        net = adopted(kind)
        masks: dict[str, Tensor] = {}

        def prune(
            _: Block, seen: Mapping[str, Statistics], net: nn.Module = net, masks: dict[str, Tensor] = masks
        ) -> None:
            for name, one in seen.items():
                score = net.get_parameter(name).detach().abs() * one.norm
                masks[name] = keep_fraction(score, 0.5, "row")
            apply_masks(net, {name: masks[name] for name in seen})

        walk(net, kind.structure(net), [lambda net=net: kind.run(net)] * 2, prune)
        found.append(masks)
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_captures_do_not_run_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first run blocks only hand on; a model whose blocks tell one another more is run as it is."""
    net, structure = random_blocks((8, 6), (8, 6), towers={"vision": 1, "text": 1})
    calls: list[int] = []
    net[1].fc1.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[index]
    runs = [lambda: net(torch.ones(1, 2, 8))] * 5
    hidden = Activations(torch.device("cpu"), Room(0, 1e9))
    capture_tower(net, structure, structure.towers[0], 0, runs, [], hidden, hidden)
    assert len(calls) == 1
    inner = type(net[0])
    odd = inner.forward
    monkeypatch.setattr(inner, "forward", lambda self, x: (odd(self, x), 1))
    monkeypatch.setattr(type(net), "forward", lambda self, x: self[1](self[0](x)[0])[0])
    calls.clear()
    captured = capture_tower(net, structure, structure.towers[0], 0, runs, [], hidden, hidden)
    assert len(calls) == 5
    assert [len(run[0]) for run in captured] == [1] * 5
    assert len(capture_all(net, structure.towers[0].blocks, runs[0])[0]) == 1


def test_many_targets_from_one_calibration() -> None:
    """With dense propagation, one walk's statistics give every target and pattern."""
    inputs = [torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(i)) for i in range(4)]

    def walk(keep: Keep | None) -> dict[str, Tensor]:
        net, structure = random_blocks((16, 16), (16, 16))
        runs = [lambda x=x: net(x) for x in inputs]
        found: dict[str, Tensor] = {}

        def prune(_: Block, seen: Mapping[str, Statistics]) -> None:
            assert keep is not None
            found.update({n: keep(net.get_parameter(n).detach().abs() * s.norm.float()) for n, s in seen.items()})

        calibrate(net, structure, runs, prune, propagate="dense")
        return found

    net, structure = random_blocks((16, 16), (16, 16))
    once = collect(net, structure, [lambda x=x: net(x) for x in inputs])
    for keep in (*(Keep(s, "row") for s in (0.5, 0.6, 0.7)), Keep(0.5, n_m=(2, 4)), Keep(0.5, n_m=(4, 8))):
        alone = walk(keep)
        for name, mask in alone.items():
            assert torch.equal(mask, keep(net.get_parameter(name).detach().abs() * once[name].norm.float()))


def test_activations_on_disk_change_nothing(tmp_path: Path) -> None:
    inputs = [torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    found = []
    for room in (Room(0, 1e9), Room(0, 500, tmp_path)):
        net, structure = random_blocks((16, 12), (16, 12), towers={"vision": 1, "text": 1})
        found.append(collect(net, structure, [lambda net=net, x=x: net(x) for x in inputs], room=room))
    assert all(torch.equal(s.square_sum, found[1][n].square_sum) for n, s in found[0].items())
    assert not list(tmp_path.rglob("*.bin"))


def test_large_arguments_beside_the_hidden_states_are_put_away_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T5's position bias, which every block is given: once a run, and on disk where there is no room."""
    kind = next(k for k in kinds.KINDS if k.name.startswith("t5"))
    made, found, written = kind.adopt(kind.build()), [], []
    write = Activations._write
    monkeypatch.setattr(Activations, "_write", lambda self, value: (written.append(value.shape), write(self, value))[1])
    for large, room in ((1 << 40, Room(0, 1e9)), (0, Room(0, 0, tmp_path))):
        monkeypatch.setattr(capture_module, "LARGE", large)
        net = deepcopy(made)
        found.append(collect(net, kind.structure(net), [lambda net=net: kind.run(net)] * 2, room=room))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(one.square_sum, found[1][name].square_sum) for name, one in found[0].items())
    biases = [shape for shape in written if len(shape) == 4]
    towers = len(kind.structure(made).towers)
    assert 2 * towers <= len(biases) <= 4 * towers, "of each run the towers' biases and masks, not those of each block"
    assert not list(tmp_path.rglob("*.bin"))


@pytest.mark.parametrize("propagate", ["pruned", "dense"])
def test_modalities_of_a_mixed_stream_are_separable(propagate: str) -> None:
    """Two runs with other layouts of image and text tokens, and one of text alone: norms of each, in both blocks."""
    inputs = [torch.randn(1, n, 16, generator=torch.Generator().manual_seed(n)) for n in (5, 3, 4)]
    masks = [torch.tensor([[1, 1, 0, 0, 0]]).bool(), torch.tensor([[0, 1, 0]]).bool(), None]
    net, structure = random_blocks((16, 12), (16, 12))
    found: dict[str, Statistics] = {}
    calibrate(
        net, structure, [lambda x=x: net(x) for x in inputs], lambda _, seen: found.update(seen),  # type: ignore[misc]
        propagate=propagate, image_tokens=masks,  # type: ignore[arg-type]
    )  # fmt: skip
    with torch.no_grad():
        hidden = [net[0](x) for x in inputs]  # type: ignore[index]
    for name, streams in (("0.fc1.weight", inputs), ("1.fc1.weight", hidden)):
        vision = sum(x[m].double().square().sum(0) for x, m in zip(streams, masks, strict=True) if m is not None)
        everything = sum(x.double().square().sum((0, 1)) for x in streams)
        seen = found[name]
        assert seen.vision is not None
        assert seen.text is not None
        assert torch.allclose(seen.vision.square_sum, vision)  # type: ignore[arg-type]
        assert torch.allclose(seen.text.square_sum, everything - vision)
        assert (seen.samples, seen.vision.samples) == (3, 2)


def test_a_block_that_is_never_called_is_told() -> None:
    net, structure = random_blocks((16, 12), (16, 12), towers={"vision": 1, "text": 1})
    with pytest.raises(RunFailed, match="the task's loss never calls 1: nothing is known"):
        calibrate(net, structure, [lambda: net[0](torch.ones(1, 2, 16))], lambda *_: None)  # type: ignore[index]
