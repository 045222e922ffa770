"""The training loop: killed after any step and resumed it is the undisturbed run, bit for bit."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlbench.capability import Batch
from vlbench.errors import RunFailed
from vlbench.job import KeepZeros
from vlbench.task import Sample
from vlbench.tensors.checkpoint import CheckpointStore
from vlbench.training.batches import Batches
from vlbench.training.loop import Diverged, Hook, Loop, NotFiniteError, Own, Schedule

STEPS = 7
SCHEDULE = Schedule(steps=STEPS, lr=0.05, warmup=2, clip=0.5, batch_size=4)


class Killed(BaseException):
    """Stands for SIGKILL."""


class Stream:
    """Batches whose images are a function of the step."""

    def at(self, step: int) -> Batch:
        images = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        return Batch(self.chosen(step), images, torch.arange(4)[:, None])

    def chosen(self, step: int) -> list[Sample]:
        return [Sample(f"{step}/{i}", ()) for i in range(4)]


class Net(nn.Module):
    """What may go wrong: dropout, a running mean, tied and frozen and unused weights, a scalar, an empty buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.outer = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)
        self.outer.weight = self.inner.weight
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(3))
        self.late = nn.Parameter(torch.zeros(6))
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("none", torch.empty(0))
        self.uses = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.frozen(self.outer(F.dropout(self.norm(self.inner(x)), 0.3, self.training)))
        return cast(Tensor, y * self.scale)


class Sums(Hook):
    """A hook with a state: sums of gradients, that move a gate outside the model."""

    def __init__(self, net: Net) -> None:
        self.net, self.sum, self.gate = net, torch.zeros(6, 6, dtype=torch.float64), torch.ones(())

    def after_backward(self, step: int) -> None:
        assert self.net.inner.weight.grad is not None
        self.sum += self.net.inner.weight.grad.double()

    def after_step(self, step: int) -> None:
        assert self.net.inner.weight.grad is None
        self.gate = self.gate * 0.9

    def state(self) -> dict[str, Tensor]:
        return {"sum": self.sum, "gate": self.gate}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.sum, self.gate = state["sum"], state["gate"]


class Run:
    """One life of a training."""

    def __init__(self, folder: Path | None, kill: int = 0, start: int = 0, **more: Any) -> None:
        torch.manual_seed(start)
        self.net = Net()
        self.hook = Sums(self.net)
        mask = torch.rand(6, 6) > 0.5
        self.net.inner.weight.data.mul_(mask)
        self.kill = kill
        self.loop = Loop(
            self.net, self.loss, cast(Batches, Stream()), more.pop("schedule", SCHEDULE), seed=3,
            hooks=[self.hook, KeepZeros(self.net, {"inner.weight": mask})],
            store=CheckpointStore(folder, {"cell": "x"}, 0) if folder else None,
            progress=self.progress, **more,
        )  # fmt: skip

    def loss(self, batch: Batch) -> Tensor:
        found = (self.net(batch.images) * self.hook.gate).square().mean()
        if int(batch.samples[0].id.split("/")[0]) >= 4:  # a parameter that gets its first gradient late
            found = found + self.net.late.square().sum() + self.net.late.sum()
        return found

    def progress(self, done: int, total: int, text: str) -> None:
        if done == self.kill:  # after the step, before its state is saved
            raise Killed

    def result(self) -> dict[str, Any]:
        return {
            "net": {k: v.clone() for k, v in self.net.state_dict().items()},
            "optimiser": self.loop.optimiser.state_dict(),
            "hook": self.hook.state(),
            "losses": self.loop.losses,
        }


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


WAYS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "sgd": {"schedule": SCHEDULE.model_copy(update={"optimiser": "sgd", "decay": "poly", "min_lr": 1e-3})},
    "accumulate": {"schedule": SCHEDULE.model_copy(update={"accumulate": 2})},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kill", range(1, STEPS + 1))
def test_killed_after_any_step_it_ends_the_same(tmp_path: Path, kill: int, way: str) -> None:
    calm = Run(None, **WAYS[way])
    calm.loop.run()
    with pytest.raises(Killed):
        Run(tmp_path / "c", kill, **WAYS[way]).loop.run()
    torch.rand(kill)  # another random state than the first life had
    again = Run(tmp_path / "c", **WAYS[way])
    assert len(again.loop.run()) == STEPS
    assert equal(again.result(), calm.result())


def test_the_state_is_float32_under_bf16() -> None:
    run = Run(None, precision="bf16")
    run.loop.run()
    slots = run.loop.optimiser.state_dict()["state"].values()
    moments = [v for slot in slots for k, v in slot.items() if k.startswith("exp_avg")]
    assert moments
    assert {v.dtype for v in (*moments, *run.net.parameters())} == {torch.float32}


def test_killed_at_every_step_it_ends_the_same(tmp_path: Path) -> None:
    calm = Run(None)
    calm.loop.run()
    for kill in range(2, STEPS + 1):
        with pytest.raises(Killed):
            Run(tmp_path / "c", kill).loop.run()
    again = Run(tmp_path / "c")
    again.loop.run()
    assert equal(again.result(), calm.result())


def test_a_resumed_run_does_not_start_again(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        Run(tmp_path / "c", STEPS).loop.run()
    again = Run(tmp_path / "c")
    steps: list[int] = []
    again.loop.progress = lambda done, total, text: steps.append(done)
    again.loop.run()
    assert steps == [STEPS]


def test_gradients_from_before_are_not_added(tmp_path: Path) -> None:
    """A method may have called backward; after a kill that would fall on another step than the first."""
    calm = Run(None)
    calm.loop.run()
    stale = Run(None)
    stale.loss(Stream().at(0)).backward()
    torch.manual_seed(0)
    stale = Run(None)
    stale.net.inner.weight.grad = torch.ones(6, 6)
    stale.loop.run()
    assert equal(stale.result(), calm.result())


@pytest.mark.parametrize(
    "other",
    [
        {"start": 1},
        {"schedule": SCHEDULE.model_copy(update={"lr": 0.01})},
        {"schedule": SCHEDULE.model_copy(update={"optimiser": "sgd"})},
        {"precision": "bf16"},
    ],
    ids=["other weights", "other schedule", "other optimiser", "other precision"],
)
def test_a_second_training_under_one_name_begins_at_its_own_start(tmp_path: Path, other: dict[str, Any]) -> None:
    """A method that prunes and trains in rounds names them alike: the first round's state is not the second's."""
    Run(tmp_path / "c").loop.run()
    calm = Run(None, **other)
    calm.loop.run()
    second = Run(tmp_path / "c", **other)
    second.loop.run()
    assert equal(second.result(), calm.result())


def test_zeros_of_a_mask_stay(tmp_path: Path) -> None:
    run = Run(None)
    zeros = run.net.inner.weight == 0
    run.loop.run()
    assert 0 < int(zeros.sum()) < 36
    assert torch.equal(run.net.inner.weight == 0, zeros)


def test_a_loss_that_is_not_finite_ends_the_run_with_its_samples() -> None:
    run = Run(None)
    run.loop.loss = lambda batch: run.net(batch.images).sum() * math.inf
    with pytest.raises(
        RunFailed, match=r"loss is (inf|-inf|nan) at step 0 \(samples 0/0, 0/1.* lower the learning rate"
    ):
        run.loop.run()


def spoil(run: Run, at: int) -> None:
    """From that step on the loss is infinite."""
    plain = run.loop.loss
    run.loop.loss = lambda b: plain(b) * (math.inf if int(b.samples[0].id.split("/")[0]) >= at else 1.0)


def test_the_last_good_state_stays_after_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    """The same command fails at the same step again, and goes on from the state once the cause is gone (a broken
    machine, say); with a lower learning rate, which is another training, it begins anew."""
    calm = Run(None)
    calm.loop.run()
    for life in range(2):
        run = Run(tmp_path / "c")
        steps: list[int] = []
        run.loop.progress = lambda done, total, text, steps=steps: steps.append(done)
        spoil(run, 4)
        with pytest.raises(Diverged, match=r"at step 4 \(samples 4/0, .* The last good state stays in .*c\."):
            run.loop.run()
        assert steps == ([1, 2, 3, 4] if life == 0 else [])
        found = CheckpointStore(tmp_path / "c", {"cell": "x"}, 0).load()
        assert found is not None
        assert found[0] == 4
    lower = SCHEDULE.model_copy(update={"lr": 0.01})
    slow, fresh = Run(None, schedule=lower), Run(tmp_path / "d", schedule=lower)
    shutil.copytree(tmp_path / "c", tmp_path / "d")
    assert slow.loop.run() == fresh.loop.run()
    again = Run(tmp_path / "c")
    again.loop.run()
    assert equal(again.result(), calm.result())


def test_what_a_hook_cannot_take_names_step_and_samples_and_keeps_the_state(tmp_path: Path) -> None:
    """A gate's gradient may overflow where the loss does not: told as an infinite loss is, in one sentence."""
    run = Run(tmp_path / "c")
    plain = run.hook.after_backward

    def overflow(step: int) -> None:
        if step == 4:
            raise NotFiniteError("a gate gradient of vision.0.ffn")
        plain(step)

    run.hook.after_backward = overflow  # type: ignore[method-assign]
    told = r"^a gate gradient of vision\.0\.ffn is not finite at step 4 \(samples 4/0, .* The last good state stays in"
    with pytest.raises(Diverged, match=told):
        run.loop.run()
    found = CheckpointStore(tmp_path / "c", {"cell": "x"}, 0).load()
    assert found is not None
    assert found[0] == 4


@pytest.mark.parametrize("where", ["weight", "moment"])
def test_a_state_that_is_not_finite_does_not_replace_a_good_one(tmp_path: Path, where: str) -> None:
    """A gradient may overflow where the loss does not, and is seen in the loss a step later only."""
    run = Run(tmp_path / "c")

    def overflow(done: int, total: int, text: str) -> None:
        if done == 4:
            with torch.no_grad():
                if where == "weight":
                    run.net.norm.bias[0] = math.nan
                else:
                    run.loop.optimiser.state[run.net.norm.bias]["exp_avg_sq"][0] = math.inf

    run.loop.progress = overflow
    try:
        run.loop.run()
    except Diverged as error:
        assert "at step 4" in str(error)  # noqa: PT017 - an infinite moment only stops its weight
    found = CheckpointStore(tmp_path / "c", {"cell": "x"}, 0).load()
    assert found is not None
    assert found[0] == 3


@pytest.mark.parametrize(("clip", "factor"), [(0.01, 1.9), (0.0, None)])
def test_the_gradient_of_all_weights_is_clipped_to_its_norm(clip: float, factor: float | None) -> None:
    """The first step of SGD with Nesterov's momentum of 0.9 is 1.9 times the gradient; clip=0 leaves it alone."""
    torch.manual_seed(0)
    net = nn.Linear(6, 6)
    before = [p.detach().clone() for p in net.parameters()]
    schedule = Schedule(steps=1, lr=1.0, warmup=0, weight_decay=0.0, clip=clip, optimiser="sgd", batch_size=4)
    Loop(net, lambda batch: net(batch.images).square().sum(), cast(Batches, Stream()), schedule, seed=0).run()
    moved = torch.cat([(p.detach() - b).flatten() for p, b in zip(net.parameters(), before, strict=True)]).norm()
    assert float(moved) == pytest.approx(factor * clip, rel=1e-4) if factor else float(moved) > 1.0


def test_no_steps_change_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path / "c", schedule=Schedule(steps=0, lr=1.0))
    before = run.result()
    assert run.loop.run() == []
    assert equal(run.result()["net"], before["net"])


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_given_back(training: bool) -> None:
    run = Run(None)
    run.net.train(training)
    run.loop.run()
    assert run.net.training is training


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, lambda t: 0.5 * (1 + math.cos(math.pi * t / 10))),
        ({"min_lr": 0.2}, lambda t: 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * t / 10))),
        ({"decay": "constant"}, lambda t: 1.0),
        ({"warmup": 4}, lambda t: (t + 1) / 4 if t < 4 else 0.5 * (1 + math.cos(math.pi * (t - 4) / 6))),
        ({"warmup": 20}, lambda t: (t + 1) / 20),
        ({"decay": "poly"}, lambda t: (1 - t / 10) ** 0.9),
        ({"decay": "poly", "min_lr": 1e-2}, lambda t: 1e-2 + 0.99 * (1 - t / 10) ** 0.9),
    ],
)
def test_the_learning_rate(changes: dict[str, Any], expected: Callable[[int], float]) -> None:
    schedule = Schedule(steps=10, lr=1.0, **changes)
    assert [schedule.lr_at(t) for t in range(10)] == pytest.approx([expected(t) for t in range(10)])


class Multiplier(Hook):
    """A mask and the multiplier of a Lagrangian, moved by the loop's optimiser; what it is told, in order."""

    def __init__(self) -> None:
        self.mask = torch.full((3,), 2.0, requires_grad=True)
        self.multiplier = torch.zeros(1, requires_grad=True)
        self.calls: list[tuple[str, int]] = []
        self.optimiser: torch.optim.Optimizer | None = None

    def own(self) -> list[Own]:
        return [Own([self.mask], rate=10.0, clipped=True), Own([self.multiplier], rate=10.0, ascends=True)]

    def bound(self, optimiser: torch.optim.Optimizer) -> None:
        self.optimiser = optimiser

    def before_step(self, step: int) -> None:
        self.calls.append(("before", step))

    def after_backward(self, step: int) -> None:
        self.calls.append(("backward", step))

    def state(self) -> dict[str, Tensor]:
        return {"mask": self.mask.detach(), "multiplier": self.multiplier.detach()}

    def restore(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            self.mask.copy_(state["mask"])
            self.multiplier.copy_(state["multiplier"])


def test_parameters_of_a_method_move_in_the_loops_optimiser(tmp_path: Path) -> None:
    """Oracle: Adam's first step, which is the learning rate in the direction of the sign. The mask falls where the
    multiplier's product with it is in the loss, the multiplier climbs, at ten times the network's rate."""

    def trained(hook: Multiplier, folder: Path, steps: int = STEPS, kill: int = 0) -> Loop:
        run = Run(None)
        schedule = SCHEDULE.model_copy(update={"steps": steps, "warmup": 0, "decay": "constant", "clip": 1.0})

        def loss(batch: Batch) -> Tensor:
            return run.loss(batch) + hook.mask.sum() + hook.multiplier.sum() * hook.mask.sum().detach()

        def progress(done: int, total: int, text: str) -> None:
            if done == kill:
                raise Killed

        store = CheckpointStore(folder, {"cell": "x"}, 0)
        loop = Loop(
            run.net, loss, run.loop.batches, schedule, seed=0, hooks=[hook], store=store, progress=progress
        )  # fmt: skip
        with pytest.raises(Killed) if kill else nullcontext():
            loop.run()
        return loop

    hook = Multiplier()
    loop = trained(hook, tmp_path / "one", steps=1)
    assert torch.allclose(hook.mask, torch.full((3,), 2 - 10 * SCHEDULE.lr), atol=1e-6)
    assert torch.allclose(hook.multiplier, torch.tensor([10 * SCHEDULE.lr]), atol=1e-6)
    assert hook.optimiser is loop.optimiser
    assert hook.calls == [("before", 0), ("backward", 0)]
    calm, killed = Multiplier(), Multiplier()
    trained(calm, tmp_path / "calm")
    trained(killed, tmp_path / "killed", kill=3)
    again = Multiplier()
    trained(again, tmp_path / "killed")
    assert torch.equal(again.mask, calm.mask)
    assert torch.equal(again.multiplier, calm.multiplier)


def test_clipping_counts_what_a_method_says() -> None:
    """A huge gradient of a method's own parameter leaves the network alone unless it is clipped together with it."""
    moved = {}
    for clipped in (False, True):

        class Huge(Hook):
            leaf = torch.zeros(1, requires_grad=True)

            def own(self, clipped: bool = clipped) -> list[Own]:
                return [Own([self.leaf], clipped=clipped)]

        run, hook = Run(None), Huge()
        schedule = SCHEDULE.model_copy(
            update={"steps": 1, "warmup": 0, "decay": "constant", "clip": 1e-3, "optimiser": "sgd", "weight_decay": 0.0}
        )
        before = run.net.inner.weight.detach().clone()
        loss = lambda batch, run=run, hook=hook: run.loss(batch) + 1e6 * hook.leaf.sum()  # noqa: E731
        Loop(run.net, loss, run.loop.batches, schedule, seed=0, hooks=[hook]).run()
        moved[clipped] = float((run.net.inner.weight.detach() - before).abs().max())
    assert moved[True] < moved[False] * 1e-3
