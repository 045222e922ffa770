"""Training by several workers is the training of one process: gradients, gates, weights, and what goes wrong."""

from __future__ import annotations

import importlib
import math
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from tests.training.families import FAMILIES, batch_of, capability, gradients, loss, open_model, set_dropout
from tests.training.test_batches import STORE, samples
from tests.workers import together
from vlbench.capability import Batch
from vlbench.compression.gates import Gates
from vlbench.errors import RunFailed
from vlbench.job import Job, Surroundings
from vlbench.machine import stopping
from vlbench.machine.stopping import Stopped
from vlbench.machine.workers import ALONE, World
from vlbench.task import Sample
from vlbench.tensors.checkpoint import CheckpointStore
from vlbench.training.batches import Batches, collate, divided
from vlbench.training.loop import Diverged, Hook, Loop, Schedule
from vlbench.training.parallel import join

upop = importlib.import_module("vlbench.methods.upop")
MEANS = [name for name in FAMILIES if "retrieval" not in name and "clip" not in name]


class Stream:
    """Batches of a model that are a function of the step."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def at(self, step: int) -> Batch:
        return cast(Batch, self.make(step))

    def chosen(self, step: int) -> list[Sample]:
        return list(self.at(step).samples)

    def share(self, step: int, rank: int, size: int) -> Batch | None:
        parts = divided(self.at(step), size)
        return parts[rank] if rank < len(parts) else None


class Taken(Hook):
    """Takes the gradients off before the optimiser sees them."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.found = net, dict[str, Tensor]()

    def after_backward(self, step: int) -> None:
        self.found = gradients(self.net)


@pytest.mark.parametrize("name", MEANS)
@pytest.mark.parametrize("size", [2, 7])
def test_the_workers_gradients_are_those_of_the_whole_batch(name: str, size: int) -> None:
    """Six samples: parts that weigh unlike, of one sample, of no told pixel, and none at all."""
    model = open_model(name)
    model.net.double()
    set_dropout(model.net, 0.0)
    copies = [deepcopy(model) for _ in range(size)]
    task: Any = type("Task", (), {"capability": capability(model)})()

    def work(world: World, accumulate: int = 1) -> tuple[list[float], dict[str, Tensor]]:
        own = copies[world.rank] if world.size > 1 else model
        job = Job(own, task, cast(Any, None), Surroundings(0, cast(Any, None)))
        schedule, taken = Schedule(steps=1, lr=1e-3, accumulate=accumulate), Taken(own.net)
        stream = cast(Batches, Stream(lambda step: batch_of(own)))
        loop = Loop(
            own.net, lambda b: loss(own, b), stream, schedule, seed=0, hooks=[taken], terms=job._terms, world=world
        )
        return loop.run(), taken.found

    (value,), whole = work(ALONE)
    scale = max(float(g.abs().max()) for g in whole.values())
    for (told,), found in together(size, lambda world: work(world, accumulate=2)):
        assert told == pytest.approx(value, rel=1e-10)
        assert found.keys() == whole.keys()
        assert max(float((found[k] - whole[k]).abs().max()) for k in whole) <= 1e-12 * scale


@pytest.mark.parametrize("size", [2, 3])
def test_a_search_moves_gates_and_weights_as_one_process_does(size: int) -> None:
    """Seven samples a batch: 2 and 3 workers have parts of 3 and 4, and of 2, 2 and 3."""
    model = open_model("deit-mini")
    model.net.double()
    set_dropout(model.net, 0.0)

    def batch(step: int) -> Batch:
        images = torch.randn(7, 3, 64, 64, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        rows = [Sample(f"{step}/{i}", (), "", model.classes[i % 3]) for i in range(7)]
        return Batch(rows, images, torch.arange(7)[:, None])

    def work(world: World) -> tuple[dict[str, Tensor], dict[str, Tensor], Any, list[float]]:
        own = deepcopy(model)
        options = upop.UPopOptions(sparsity=0.5, steps=6, interval=2, lr=1e-3, clip=1.0, warmup=2)
        structure = own.structure()
        gates = Gates(own.net, structure)
        search = upop.Search(gates, structure, options, {s.name: float(s.entries_per_unit) for s in structure.sites})
        losses = Loop(
            own.net, lambda b: loss(own, b), cast(Batches, Stream(batch)), options, seed=0, hooks=[search], world=world
        ).run()
        told = {f"{what}.{n}": v.detach() for what in ("total", "gates") for n, v in _of(search, what).items()}
        return told, dict(own.net.named_parameters()), search.kept, losses

    told, weights, kept, losses = work(ALONE)
    assert max(float(v.abs().max()) for n, v in told.items() if n.startswith("total")) > 1e-3
    for their_told, their_weights, their_kept, their_losses in together(size, work):
        assert max(float((told[n] - their_told[n]).abs().max()) for n in told) <= 1e-10
        assert max(float((weights[n] - their_weights[n]).detach().abs().max()) for n in weights) <= 1e-9
        assert all(torch.equal(kept[n], their_kept[n]) for n in kept)
        assert their_losses == pytest.approx(losses, rel=1e-10)


def _of(search: Any, what: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = search.total if what == "total" else search.gates.value
    return found


class Line(nn.Module):
    """Five inputs, one output, and parameters that only some samples, or none, give a gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.line = nn.Linear(5, 1).double()
        self.rare = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.never = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def loss(self, batch: Batch) -> Tensor:
        found = self.line(batch.images).square().mean()
        if batch.samples[0].id.endswith("/0"):
            found = found + self.rare.square().sum()
        return cast(Tensor, found)


def numbers(step: int) -> Batch:
    images = torch.randn(4, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return Batch([Sample(f"{step}/{i}", ()) for i in range(4)], images, torch.arange(4)[:, None])


START = Line()


def line(world: World, **more: Any) -> Loop:
    net = more.pop("net", None) or deepcopy(START)
    schedule = Schedule(steps=6, lr=0.05, batch_size=4)
    return Loop(net, more.pop("loss", net.loss), cast(Batches, Stream(numbers)), schedule, seed=0, world=world, **more)


def trained(world: World, **more: Any) -> dict[str, Tensor]:
    loop = line(world, **more)
    loop.run()
    return {n: p.detach() for n, p in loop.net.named_parameters()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[n], b[n]) for n in a)


def test_what_has_no_gradient_anywhere_is_left_alone_and_workers_are_equal_to_the_bit() -> None:
    start = dict(START.named_parameters())
    first, second, third = together(3, trained)
    assert equal(first, second)
    assert equal(first, third)
    assert torch.equal(first["never"], start["never"])
    assert not torch.equal(first["rare"], start["rare"])  # workers 1 and 2 never see its sample


def test_gradients_of_other_types_are_summed_apart_and_large_ones_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlbench.training.parallel.BUCKET", 7)

    def work(world: World) -> list[Tensor]:
        leaves = [torch.zeros(n, dtype=t) for n, t in ((3, torch.float32), (4, torch.float64), (9, torch.float64))]
        for number, leaf in enumerate(leaves):
            leaf.grad = torch.full_like(leaf, 10.0**number * (world.rank + 1))
        assert join(leaves, 1.5, world) == 3.0
        return [cast(Tensor, leaf.grad) for leaf in leaves]

    for found in together(2, work):
        assert [g.unique().tolist() for g in found] == [[3.0], [30.0], [300.0]]
        assert [(g.dtype, len(g)) for g in found] == [(torch.float32, 3), (torch.float64, 4), (torch.float64, 9)]


def test_of_a_loss_that_is_no_mean_the_leader_has_the_batch() -> None:
    seen: list[int] = []

    def compared(net: Line) -> Any:
        return lambda batch: seen.append(len(batch.samples)) or net.line(batch.images).var()

    def work(world: World) -> dict[str, Tensor]:
        net = deepcopy(START)
        return trained(world, net=net, loss=compared(net), whole=True)

    alone = work(ALONE)
    assert all(equal(alone, other) for other in together(3, work))
    assert seen == [4] * 12


def test_all_stop_where_the_joined_loss_is_no_number() -> None:
    """One worker's part is: none of them may go on, or wait for ever."""

    def work(world: World) -> str:
        net = deepcopy(START)
        nan = lambda b: net.loss(b) * (math.nan if b.samples[0].id == "2/2" else 1.0)  # noqa: E731
        with pytest.raises(Diverged) as stopped:
            trained(world, net=net, loss=nan)
        return str(stopped.value)

    told = "the loss is nan at step 2 (samples 2/0, 2/1, 2/2, 2/3 ...): lower the learning rate."
    assert together(2, work) == [told, told]


def test_a_hook_that_keeps_its_own_part_is_found() -> None:
    """A gate that the loop is not told of: each worker would move its own."""

    class Own(Hook):
        def __init__(self) -> None:
            self.gate = torch.ones(1, dtype=torch.float64, requires_grad=True)

        def after_backward(self, step: int) -> None:
            assert self.gate.grad is not None
            with torch.no_grad():
                self.gate -= 0.1 * self.gate.grad
            self.gate.grad = None

        def state(self) -> dict[str, Tensor]:
            return {"gate": self.gate.detach()}

    class Told(Own):
        def leaves(self) -> list[Tensor]:
            return [self.gate]

    def work(world: World, kind: type[Own]) -> Tensor:
        net, hook = deepcopy(START), kind()
        trained(world, net=net, loss=lambda b: net.line(b.images).square().mean() * hook.gate, hooks=[hook])
        return hook.gate.detach()

    with pytest.raises(RunFailed, match=r"hook.0.gate is another in worker 1 than in worker 0"):
        together(2, lambda world: work(world, Own))
    one, other = together(2, lambda world: work(world, Told))
    assert torch.equal(one, other)
    assert float(one) == pytest.approx(float(work(ALONE, Told)), abs=1e-12)


def test_workers_drop_out_differently_and_hooks_draw_the_same() -> None:
    seeds: dict[int, list[int]] = {0: [], 1: []}

    def work(world: World) -> None:
        loop = line(world)
        loop._seed = lambda step, rank=0: seeds[world.rank].append(rank)  # type: ignore[method-assign]
        loop.run()

    together(2, work)
    assert seeds[0] == [0] * 18
    assert seeds[1] == [0, 1, 0] * 6  # its own while it computes, the common one for hooks


def test_a_stopped_run_goes_on_in_all_workers_from_what_the_leader_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order reaches one worker: both leave at that step, and the resumed run is the undisturbed one to the bit."""
    calm = together(2, trained)[0]

    def stopped(world: World) -> int:
        store = CheckpointStore(tmp_path / "c", {"cell": "x"}, 3600.0, world)
        loop = line(world, store=store)
        if world.rank == 1:
            monkeypatch.setattr(loop, "_own_backward", _ordering(loop, at=3))
        with pytest.raises(Stopped):
            loop.run()
        return len(loop.losses)

    order = {"come": False}
    monkeypatch.setattr("vlbench.training.loop.ordered", lambda: order.pop("come_to_one", False))

    def _ordering(loop: Loop, at: int) -> Any:
        plain = loop._own_backward

        def backward(step: int, batch: Batch | None) -> float:
            if step == at:
                order["come_to_one"] = True
            return plain(step, batch)

        return backward

    assert together(2, stopped) == [4, 4]
    saved = CheckpointStore(tmp_path / "c", {"cell": "x"}).load()
    assert saved is not None
    assert saved[0] == 4
    monkeypatch.setattr("vlbench.training.loop.ordered", stopping.ordered)

    def resumed(world: World) -> dict[str, Tensor]:
        return trained(world, store=CheckpointStore(tmp_path / "c", {"cell": "x"}, 3600.0, world))

    assert all(equal(calm, other) for other in together(2, resumed))


def test_a_worker_that_does_not_see_the_leaders_folder_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlbench.tensors.checkpoint.VISIBLE", 0.2)
    CheckpointStore(tmp_path / "0", {"cell": "x"}).save(3, {"a": torch.ones(1)}, None)
    with pytest.raises(RunFailed, match=r"worker 1 does not see .*: all machines must share --runs"):
        together(2, lambda w: CheckpointStore(tmp_path / str(w.rank), {"cell": "x"}, world=w).load())
    found = together(2, lambda w: CheckpointStore(tmp_path / "0", {"cell": "x"}, world=w).load())
    assert [step for step, _, _ in found] == [3, 3]


@pytest.mark.parametrize("size", [2, 3, 8])
def test_the_parts_of_a_batch_are_read_apart(size: int) -> None:
    stream = Batches(samples([3, 1, 6, 2, 5, 4, 1]), STORE, size=6, seed=0)
    for step in range(3):
        whole = divided(collate(stream.chosen(step), STORE, torch.device("cpu")), size)
        for rank in range(size):
            part = stream.share(step, rank, size)
            if rank >= len(whole):
                assert part is None
                continue
            assert part is not None
            assert list(part.samples) == list(whole[rank].samples)
            assert torch.equal(part.images, whole[rank].images)
            assert torch.equal(part.owner, whole[rank].owner)
