"""Oracle: the CPU. Everything that runs a model runs on a simulated device (tests/simulated.py), where a tensor left on
the wrong side raises, with the same predictions, masks and losses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.methods.killed import killed_and_resumed, same_weights
from tests.registry import prompted
from tests.simulated import Counts, simulated
from tests.training.families import FAMILIES, TEXTS, batch_of, capability, loss, open_model
from vlbench.calibration.activations import Activations, Room
from vlbench.capability import Batch
from vlbench.checks.contract import _targets
from vlbench.checks.tiny import Outcome, Workshop
from vlbench.compression.state import Compression
from vlbench.images.pipeline import ImageStore
from vlbench.job import Job, Surroundings
from vlbench.machine.device import computing_device, has_bf16, product
from vlbench.machine.ui import Screen
from vlbench.plugins.table import table
from vlbench.restoring.momentum import MomentumOptions
from vlbench.task import Sample

pytestmark = pytest.mark.slow


@pytest.fixture
def counts() -> Iterator[Counts]:
    with simulated() as counted:
        yield counted


# The device itself ----------------------------------------------------------------------------------------------------


def test_it_is_the_default_and_minds_what_a_device_minds(counts: Counts) -> None:
    device = computing_device()
    assert (str(device), product(device), has_bf16(device)) == ("sim", "simulated device", True)
    counts.clear()
    there, here = torch.ones(2, 3, device=device), torch.ones(2, 3)
    with pytest.raises(RuntimeError, match=r"one of \(2, 3\) is on the CPU"):
        there + here
    assert not counts.waits
    assert (there + 1).sum().item() == 12
    assert (there > 0).any()
    assert there[there > 0].tolist() == [1.0] * 6
    assert torch.equal(there.cpu(), here)
    assert sum(counts.waits.values()) == 5
    assert not counts.sent
    torch.tensor([1, 2], device=device)
    assert sum(counts.sent.values()) == 1


def test_outside_of_the_with_statement_there_is_no_device() -> None:
    with simulated():
        assert computing_device().type == "sim"
    assert computing_device().type == "cpu" or torch.cuda.is_available()


# Evaluation and loss of every family ---------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "answer": {"decoding": "rank", "candidates": ["red", "blue", "two", "yes", "a red circle"], "k_test": 3},
    "caption": {"beams": 3, "max_length": 12, "min_length": 3, "prompt": "a picture of"},
    "segment": {"window": 64, "stride": 64, "scales": (1.0,), "flip": False},
}


GENERATED = {"decoding": "generate", "beams": 2, "max_length": 5}


def evaluated_batch(model: Any) -> Batch:
    """One sample an image where images keep their shapes, the uneven batch of tests/training otherwise."""
    batch = batch_of(model)
    batch.options, batch.sizes = OPTIONS.get(capability(model), {}), [(64, 64)] * 4
    if capability(model) == "segment":
        batch.images, batch.samples, batch.owner = list(batch.images), batch.samples[:4], torch.arange(4)[:, None]
    batch.maps = None
    return batch


def moved(batch: Batch, device: torch.device) -> Batch:
    images = batch.images
    batch.images = [one.to(device) for one in images] if isinstance(images, list) else images.to(device)
    batch.owner = batch.owner.to(device)
    batch.maps = None if batch.maps is None else batch.maps.to(device)
    return batch


def predicted(model: Any, batch: Batch) -> list[Any]:
    model.net.eval()
    method = {"match": "embed"}.get(capability(model), capability(model))
    with torch.no_grad():
        found = getattr(model, method)(model.encode(batch.images), batch)
    return [{k: v.cpu() if isinstance(v, Tensor) else v for k, v in one.items()} for one in found]


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, Tensor):
        return torch.allclose(ours, theirs, atol=1e-5)
    return bool(ours == theirs)


@pytest.mark.parametrize("name", FAMILIES)
def test_predictions_are_the_cpus(name: str, counts: Counts) -> None:
    model = open_model(name)
    wanted = predicted(model, evaluated_batch(model))
    model.place("fp32")
    assert model.device.type == "sim"
    found = predicted(model, moved(evaluated_batch(model), model.device))
    assert len(found) == len(wanted)
    assert all(a.keys() == b.keys() and all(same(a[k], b[k]) for k in a) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_losses_and_gradients_are_the_cpus(name: str, counts: Counts) -> None:
    """Dropout draws the same numbers: a simulated device has the host's."""
    model = open_model(name)
    values, norms = [], []
    for place in (False, True):
        if place:
            model.place("fp32")
        model.net.train().zero_grad()
        torch.manual_seed(0)
        found = loss(model, moved(batch_of(model), model.device))
        found.backward()
        values.append(found.item())
        norms.append({n: p.grad.norm().item() for n, p in model.net.named_parameters() if p.grad is not None})
    assert values[1] == pytest.approx(values[0], rel=1e-4)
    assert norms[1] == pytest.approx(norms[0], rel=1e-2, abs=1e-5)


@pytest.mark.parametrize("name", prompted.NAMES)
@pytest.mark.parametrize("how", [{"decoding": "rank", "candidates": ["red", "two", "d e"], "k_test": 2}, GENERATED])
def test_prompted_families_answer_as_on_the_cpu(name: str, how: dict[str, Any], counts: Counts, tmp_path: Path) -> None:
    model, batch = prompted.build(name, tmp_path), prompted.batch(**how)
    batch.images = batch.images.to(model.dtype)
    model.net.eval()
    with torch.no_grad():
        wanted = model.answer(model.encode(batch.images), batch), model.answer_loss(batch).item()
        model.place("fp32")
        moved(batch, model.device)
        assert model.answer(model.encode(batch.images), batch) == wanted[0]
        assert model.answer_loss(batch).item() == pytest.approx(wanted[1])


@pytest.mark.parametrize("name", prompted.NAMES)
def test_a_model_spread_over_two_devices_answers_the_same(name: str, counts: Counts, tmp_path: Path) -> None:
    """Every other block on the simulated device, the rest on the CPU, with accelerate's hooks in between."""
    hooks = pytest.importorskip("accelerate.hooks")
    model, batch = prompted.build(name, tmp_path), prompted.batch(**GENERATED)
    batch.images = batch.images.to(model.dtype)
    model.net.eval()
    blocks = [block.path for tower in model.structure().towers for block in tower.blocks]
    leaves = [n for n, module in model.net.named_modules() if n and not list(module.children())]
    inside = tuple(f"{path}." for path in blocks)
    where = {path: ("sim:0", "cpu")[number % 2] for number, path in enumerate(blocks)}
    where |= {leaf: "cpu" for leaf in leaves if not leaf.startswith(inside)}
    with torch.no_grad():
        wanted = model.answer(model.encode(batch.images), batch), model.answer_loss(batch).item()
        for path, device in where.items():
            model.net.get_submodule(path).to(device)
        skipped = getattr(model.net, "_skip_keys_device_placement", None)
        hooks.attach_align_device_hook_on_blocks(
            model.net, execution_device=where, offload=dict.fromkeys(where, False), skip_keys=skipped
        )
        assert {p.device.type for p in model.net.parameters()} == {"cpu", "sim"}
        assert model.answer(model.encode(batch.images), batch) == wanted[0]
        assert model.answer_loss(batch).item() == pytest.approx(wanted[1])


# Methods --------------------------------------------------------------------------------------------------------------


class Shallow(Workshop):
    """Two blocks: what one more would find, the second finds."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(table("methods").get(name), folder, Screen(quiet=True))
        self.config = {**self.config, "model_args": {**self.config["model_args"], "depth": 2}}


def links() -> list[str]:
    """Every method that is no chain of others."""
    return [e.name for e in table("methods").entries.values() if e.built_in and "links" not in e.facts]


@pytest.mark.parametrize("name", links())
def test_methods_leave_what_they_leave_on_the_cpu(name: str, tmp_path: Path) -> None:
    workshop = Shallow(name, tmp_path)
    words = _targets([workshop.entry])[0].words
    wanted = workshop.run(words)
    outputs = workshop.outputs(wanted.model)
    with simulated():
        found = workshop.run(words)
        assert found.model.device.type == "sim"
        assert torch.allclose(workshop.outputs(found.model), outputs, atol=1e-4)
    assert {k: int((v != wanted.state.masks[k]).sum()) for k, v in found.state.masks.items()} == dict.fromkeys(
        wanted.state.masks, 0
    )
    assert found.state.cuts == wanted.state.cuts


def test_a_killed_finetuning_with_distillation_ends_the_same(
    counts: Counts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps in parts, with recomputed activations, a teacher and a checkpoint a step."""
    workshop = Shallow("finetune", tmp_path)
    options = {"steps": "2", "warmup": "0", "batch_size": "8", "accumulate": "2", "checkpointing": "on", "loss": "both"}
    words = {f"finetune.{key}": value for key, value in options.items()}
    words["method"] = "dense+finetune"
    calm = Outcome(workshop.model(), Compression(), 0)
    for link in workshop.links(words):
        link.method(link.options).apply(workshop.job(calm, 0))
    resumed = killed_and_resumed(workshop, words, monkeypatch, after=1)
    assert calm.model.device.type == "sim"
    assert same_weights(calm, resumed)


@pytest.mark.parametrize("place", ["device", "host", "disk"])
def test_calibration_keeps_its_activations_where_there_is_room(
    place: str, counts: Counts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = {"device": Room(1e9, 1e9, tmp_path), "host": Room(0, 1e9, tmp_path), "disk": Room(0, 0, tmp_path)}
    monkeypatch.setattr(Room, "here", classmethod(lambda cls, device, folder=None: rooms[place]))
    held: list[str] = []
    put = Activations.put

    def watched(this: Activations, at: tuple[int, int], value: Tensor) -> None:
        put(this, at, value)
        held.extend(this.counts())

    monkeypatch.setattr(Activations, "put", watched)
    workshop = Shallow("wanda", tmp_path)
    found = workshop.run({"wanda.sparsity": "0.5"})
    assert set(held) == {{"device": "sim", "host": "cpu", "disk": "disk"}[place]}
    monkeypatch.setenv("VLBENCH_DEVICE", "cpu")
    wanted = workshop.run({"wanda.sparsity": "0.5"})
    assert all(torch.equal(mask, wanted.state.masks[name]) for name, mask in found.state.masks.items())


class Pictures:
    """What a job asks a task for."""

    name, capability = "pictures", "match"

    def __init__(self, folder: Path) -> None:
        self.all = []
        for i in range(4):
            shown = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(shown).save(folder / f"{i}.png")
            self.all.append(Sample(str(i), (folder / f"{i}.png",), texts=(TEXTS[i],)))

    def taught(self) -> dict[str, Any]:
        return {}

    def roles(self) -> dict[str, str]:
        return {"train": "train", "select": "select", "report": "report"}

    def split_for(self, role: str) -> str:
        return role

    def samples(self, split: str) -> list[Sample]:
        return self.all if split == "train" else []

    def missing(self, split: str) -> list[str]:
        return []


@pytest.mark.parametrize("name", ["blip-retrieval-mini", "clip-mini"])
def test_the_momentum_loss_is_the_cpus(name: str, tmp_path: Path) -> None:
    """Two steps with twin and queue, a checkpoint each."""

    def losses(folder: Path) -> list[float]:
        model = open_model(name)
        model.place("fp32")
        task: Any = Pictures(tmp_path)
        options = MomentumOptions(steps=2, lr=1e-3, loss="momentum", queue=5, batch_size=4)
        store = ImageStore(model.card.image)
        job = Job(model, task, store, Surroundings(0, folder, checkpoint_seconds=0.0))
        torch.manual_seed(0)
        return job.train("x", options, loss=options.objective(job))

    wanted = losses(tmp_path / "cpu")
    with simulated():
        assert losses(tmp_path / "sim") == pytest.approx(wanted, rel=1e-4)


def test_the_contract_test_runs_on_the_device(counts: Counts, tmp_path: Path) -> None:
    """`vlbench check method=NAME --device`: saved and loaded, too."""
    from vlbench.checks.contract import _check_reload

    workshop = Shallow("magnitude", tmp_path)
    target = _targets([workshop.entry])[0]
    outcome: Outcome = workshop.run(target.words)
    assert "bit-equal outputs" in _check_reload(workshop, target, outcome, workshop.outputs(outcome.model))
