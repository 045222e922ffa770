"""The momentum loss: twin, queue and targets by hand, and a search and a finetuning that are killed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tests.training.families import TEXTS, batch_of, open_model
from vlbench.capability import Pairs, Views
from vlbench.cell.resolve import resolve
from vlbench.compression.gates import Gates
from vlbench.compression.state import Compression
from vlbench.images.pipeline import ImageStore
from vlbench.job import Job, Surroundings
from vlbench.restoring.momentum import NOBODY, MomentumOptions, Queue, contrast, twin_of
from vlbench.task import Sample
from vlbench.training.loop import Loop

MATCHERS = ("blip-retrieval-mini", "clip-mini")


def options(**changes: Any) -> MomentumOptions:
    return MomentumOptions(**{"steps": 4, "lr": 1e-3, "loss": "momentum", "queue": 5, "batch_size": 4, **changes})


def unit(*shape: int, seed: int = 0) -> Tensor:
    draws = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(draws, dim=-1)


# The loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_the_loss_is_that_of_its_formula(alpha: float) -> None:
    """Written out sample by sample. Samples 0 and 2 show one image, which the queue holds twice more."""
    own, twin = Pairs(unit(3, 6, seed=1), unit(3, 6, seed=2)), Pairs(unit(3, 6, seed=3), unit(3, 6, seed=4))
    queue = Queue(unit(4, 6, seed=5), unit(4, 6, seed=6), torch.tensor([7, NOBODY, 9, 7]))
    numbers, scale = torch.tensor([7, 8, 7]), torch.tensor(3.0, dtype=torch.float64)
    found = contrast(Views(own, twin, twin, scale), queue, numbers, alpha)
    known = [7, 8, 7, 7, NOBODY, 9, 7]
    total = 0.0
    for mine, its, others in (
        (own.images, twin.images, torch.cat([twin.texts, queue.texts])),
        (own.texts, twin.texts, torch.cat([twin.images, queue.images])),
    ):
        for i, number in enumerate(numbers.tolist()):
            told = [number == other for other in known]
            soft = (3.0 * others @ its[i]).softmax(0)
            log = (3.0 * others @ mine[i]).log_softmax(0)
            for j, positive in enumerate(told):
                target = alpha * float(soft[j]) + (1 - alpha) * positive / sum(told)
                total -= target * float(log[j]) / 3 / 2
    assert float(found) == pytest.approx(total, abs=1e-7)  # the shares are float32


def test_only_the_models_own_features_and_the_scale_get_gradients() -> None:
    tensors = [unit(2, 3, seed=i).requires_grad_() for i in range(4)]
    scale = torch.tensor(2.0, requires_grad=True)
    queue = Queue(unit(3, 3), unit(3, 3), torch.tensor([0, 1, 2]))
    views = Views(Pairs(*tensors[:2]), Pairs(*(t.detach() for t in tensors[2:])), Pairs(*tensors[:2]), scale)
    loss = contrast(views, queue, torch.tensor([0, 1]), 0.4)
    queue.push(views.queued, torch.tensor([0, 1]))  # in the place of what was compared with
    loss.backward()
    assert all(t.grad is not None for t in (*tensors[:2], scale))
    assert not queue.images.requires_grad


# The queue ------------------------------------------------------------------------------------------------------------


def test_a_queue_takes_the_place_of_its_oldest() -> None:
    queue = Queue(torch.zeros(5, 1), torch.zeros(5, 1), torch.full((5,), NOBODY))
    for start, count in ((0, 2), (2, 2), (4, 3), (7, 7)):
        numbers = torch.arange(start, start + count)
        queue.push(Pairs(numbers[:, None] * 1.0, numbers[:, None] * -1.0), numbers)
        if start == 4:
            assert queue.numbers.tolist() == [5, 6, 2, 3, 4]
            assert queue.next == 2
    assert queue.numbers.sort().values.tolist() == [9, 10, 11, 12, 13], "of a larger batch the end"
    assert queue.images[:, 0].tolist() == queue.numbers.tolist()
    assert queue.texts[:, 0].tolist() == [-n for n in queue.numbers.tolist()]


def test_a_queue_begins_with_directions_that_are_nobodys() -> None:
    one, same, other = (Queue.random(50, torch.zeros(2, 8).bfloat16(), seed) for seed in (0, 0, 1))
    assert torch.equal(one.images, same.images)
    assert torch.equal(one.texts, same.texts)
    assert not torch.equal(one.images, other.images)
    assert not torch.equal(one.images, one.texts)
    assert one.images.dtype == torch.float32
    assert torch.allclose(one.images.norm(dim=1), torch.ones(50))
    assert set(one.numbers.tolist()) == {NOBODY}


# The twin -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Six pictures of noise, two captions each."""
    folder = tmp_path_factory.mktemp("pictures")
    found = []
    for i in range(6):
        shown = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(shown).save(folder / f"{i}.png")
        found += [Sample(f"{i}{k}", (folder / f"{i}.png",), texts=(TEXTS[(i + k) % 6],)) for k in range(2)]
    return found


class Pictures:
    """What a job asks a task for."""

    name, capability = "pictures", "match"

    def __init__(self, samples: list[Sample]) -> None:
        self.all = samples

    def roles(self) -> Mapping[str, str]:
        return {"train": "train", "select": "select", "report": "report"}

    def split_for(self, role: str) -> str:
        return role

    def taught(self) -> dict[str, Any]:
        return {}

    def samples(self, split: str) -> list[Sample]:
        return self.all if split == "train" else []

    def missing(self, split: str) -> list[str]:
        return []


def job_of(model: Any, samples: list[Sample], folder: Path, precision: Literal["fp32", "bf16"] = "fp32") -> Job:
    task: Any = Pictures(samples)
    here = Surroundings(0, folder, checkpoint_seconds=0.0, precision=precision)
    return Job(model, task, ImageStore(model.card.image), here)


@pytest.mark.parametrize("name", MATCHERS)
def test_the_twin_follows_what_is_trained_and_the_ramp_ends_with_the_epoch(
    name: str, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """twin <- m twin + (1 - m) model before every step; frozen weights stay as they are, whatever rounding says."""
    model = open_model(name)
    frozen = next(iter(model.structure().matrices))
    model.net.get_parameter(frozen).requires_grad_(False)
    momentum: Any = options(momentum=0.9).objective(job := job_of(model, samples, tmp_path))
    expected = {k: v.detach().double() for k, v in model.net.named_parameters()}
    assert all(torch.equal(v, expected[k].float()) for k, v in momentum.twin.net.named_parameters())
    module = importlib.import_module("vlbench.restoring.momentum")
    alphas: list[float] = []
    monkeypatch.setattr(module, "contrast", lambda *given: alphas.append(given[3]) or contrast(*given))
    seen = [{k: v.detach().double() for k, v in model.net.named_parameters()}]
    plain = Loop._step

    def step(loop: Any, number: int) -> None:
        plain(loop, number)
        seen.append({k: v.detach().double().clone() for k, v in model.net.named_parameters()})

    monkeypatch.setattr(Loop, "_step", step)
    job.train("x", options(steps=5, momentum=0.9), loss=momentum)
    for before in seen[:-1]:
        expected = {k: 0.9 * v + 0.1 * before[k] for k, v in expected.items()}
    for key, value in momentum.twin.net.named_parameters():
        assert torch.allclose(value.double(), expected[key], rtol=0, atol=1e-6), key
        assert not value.requires_grad
    assert torch.equal(momentum.twin.net.get_parameter(frozen), model.net.get_parameter(frozen))
    assert job.data.batches(4).batches_per_epoch == 2
    assert alphas == pytest.approx([0, 0.2, 0.4, 0.4, 0.4])
    assert len(momentum.queue.numbers) == 5


def test_a_queue_is_no_longer_than_the_train_split(samples: list[Sample], tmp_path: Path) -> None:
    momentum: Any = options(queue=57600).objective(job_of(open_model("clip-mini"), samples, tmp_path))
    assert momentum.size == len(samples) == 12
    assert set(momentum.number.values()) == set(range(6))


def test_the_twin_has_no_gates_and_is_made_before_them(samples: list[Sample], tmp_path: Path) -> None:
    """A copy of a gated module would go on computing with the model's weights and gates."""
    model = open_model("clip-mini")
    momentum: Any = options().objective(job := job_of(model, samples, tmp_path))
    batch = job.data.batches(4).at(0)
    with torch.no_grad():
        before = model.match_momentum(batch, momentum.twin)
        gates = Gates(model.net, model.structure())
        gates.set({name: torch.zeros_like(gate) for name, gate in gates.value.items()})
        after = model.match_momentum(batch, momentum.twin)
    assert torch.equal(before.twin.images, after.twin.images)
    assert torch.equal(before.twin.texts, after.twin.texts)
    assert not torch.allclose(before.own.images, after.own.images, atol=1e-3)
    with pytest.raises(RuntimeError, match="before gates"):
        twin_of(model)
    gates.remove()
    twin_of(model)


@pytest.mark.parametrize("name", MATCHERS)
def test_bf16_trains_with_a_float32_queue(name: str, samples: list[Sample], tmp_path: Path) -> None:
    momentum: Any = options().objective(job := job_of(open_model(name), samples, tmp_path, "bf16"))
    losses = job.train("x", options(), loss=momentum)
    assert np.isfinite(losses).all()
    assert momentum.queue.images.dtype == momentum.queue.texts.dtype == torch.float32


# Chains ---------------------------------------------------------------------------------------------------------------

WORDS = {
    "upop_search.steps": "4", "upop_search.interval": "1", "upop_search.batch_size": "4", "upop_search.queue": "6",
    "finetune.steps": "3", "finetune.warmup": "0", "finetune.batch_size": "4", "finetune.queue": "6",
    "upop_search.loss": "momentum", "finetune.loss": "momentum",
}  # fmt: skip


def chain(model: Any, samples: list[Sample], folder: Path, search: str = "upop_search") -> Compression:
    """The search and finetune on the model, as a run applies them."""
    words = {key.replace("upop_search", search): value for key, value in WORDS.items()}
    if search != "upop_search":
        del words[f"{search}.interval"]
    method = search.removesuffix("_search")
    spec = resolve({"task": "coco_retrieval", "model": model.card.name, "method": method, "seed": "0", **words})
    state = Compression()
    for link in spec.links:
        job = job_of(model, samples, folder)
        job.changes.state = state
        torch.manual_seed(0)
        link.method(link.options).apply(job)
    return state


@pytest.fixture(scope="module")
def calm(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Compression]]:
    """Every family's model after an undisturbed chain."""
    found = {}
    for name in MATCHERS:
        model = open_model(name)
        found[name] = model, chain(model, samples, tmp_path_factory.mktemp(name))
    return found


@pytest.mark.parametrize("name", MATCHERS)
@pytest.mark.parametrize("kill", [1, 3, 5, 6])
def test_killed_after_any_step_it_ends_the_same(
    name: str, kill: int, samples: list[Sample], calm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the search (four steps) and in the finetuning: twin, queue and ramp are where they were."""
    plain, done = Loop._step, [0]

    def step(loop: Any, number: int) -> None:
        if done[0] == kill:
            raise KeyboardInterrupt
        done[0] += 1
        plain(loop, number)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", step)
        with pytest.raises(KeyboardInterrupt):
            chain(open_model(name), samples, tmp_path)
    torch.rand(kill)
    again = open_model(name)
    state = chain(again, samples, tmp_path)
    model, undisturbed = calm[name]
    weights, theirs = again.net.state_dict(), model.net.state_dict()
    assert weights.keys() == theirs.keys()
    assert all(torch.equal(v, theirs[k]) for k, v in weights.items())
    assert [state.log[k]["loss"] for k in state.log] == [undisturbed.log[k]["loss"] for k in undisturbed.log]


def test_learned_masks_train_on_it(samples: list[Sample], tmp_path: Path) -> None:
    """Their gates come after the twin, too."""
    state = chain(open_model("clip-mini"), samples, tmp_path, "mask_based_search")
    assert [len(log["loss"]) for log in state.log.values()] == [4, 3]
    assert all(np.isfinite(log["loss"]).all() for log in state.log.values())


@pytest.mark.parametrize("name", MATCHERS)
def test_the_twin_is_no_part_of_the_model(name: str, calm: Any) -> None:
    """The cut model has the dense one's keys and nothing of the twin, gates or queues."""
    model, state = calm[name]
    assert model.net.state_dict().keys() == open_model(name).net.state_dict().keys()
    assert not any("forward" in vars(module) for module in model.net.modules())
    assert len(state.log["upop_search"]["loss"]) == 4
    assert len(state.log["finetune"]["loss"]) == 3


# Hardness -------------------------------------------------------------------------------------------------------------


def test_harder_negatives_weigh_more_by_their_formula() -> None:
    """CLIP's loss with hardness=9, pair by pair: log sum_j exp(s_ij + 9 cos_ij [j is no pair of i])."""
    model = open_model("clip-mini")
    batch = batch_of(model)
    plain, hard = (model.match_outputs(replace(batch, options=o)) for o in ({}, {"hardness": 9.0}))
    logits, scale = plain.logits[0][0].double(), float(model._scale())
    same = batch.owner[:, :1] == batch.owner[:, 0]
    total = 0.0
    for side in (logits, logits.T):
        weighed = side + 9 * side / scale * ~same
        total += float((weighed.logsumexp(1) - (side * same).sum(1) / same.sum(1)).mean()) / 2
    assert float(hard.loss()) == pytest.approx(total, rel=1e-5)
    assert float(hard.loss()) != pytest.approx(float(plain.loss()), rel=1e-2)
