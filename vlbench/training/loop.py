"""One training loop for search, finetuning and adapters: same order, same resume, same log."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..capability import Batch
from ..disk.storage import digest
from ..errors import RunFailed
from ..machine.stopping import Stopped, ordered, step_by_step
from ..machine.workers import ALONE, World
from ..nn.precision import plain_float32
from ..task import Sample
from ..tensors.checkpoint import CheckpointStore
from ..tensors.reading import weights_digest
from .batches import Batches, divided
from .hooks import Hook, NotFiniteError, Own
from .optimisers import build_optimiser
from .parallel import join, mixed, refuse_drift, summed
from .schedule import Schedule

__all__ = ["Diverged", "Hook", "Loop", "NotFiniteError", "Own", "Schedule"]


class Diverged(RunFailed):
    """The loss is not finite."""


class Loop:
    """Trains `net` on loss(batch). Batches and dropout are functions of (seed, step), so that a resumed run equals an
    undisturbed one bit for bit on the same device.

    With `accumulate` the gradient is summed over parts of the batch, each weighted by terms(part), the number of terms
    that its loss is the mean over: the gradient of the whole batch to rounding, where the loss is such a mean and
    without dropout, which draws other numbers. A loss that compares the samples of a batch (contrastive) is none.

    Several workers (`world`) share a batch in just this way, each with a part of it, and all move alike. Of a loss that
    is no mean, or that keeps something from step to step (`whole`), the leading worker has the whole batch, and the
    others follow. The leading worker alone saves.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Batch], Tensor],
        batches: Batches,
        schedule: Schedule,
        *,
        seed: int,
        terms: Callable[[Batch], int] = lambda batch: len(batch.samples),
        hooks: Sequence[Hook] = (),
        store: CheckpointStore | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
        progress: Callable[[int, int, str], None] = lambda done, total, text: None,
        world: World = ALONE,
        whole: bool = False,
    ) -> None:
        self.net, self.loss, self.batches, self.schedule = net, loss, batches, schedule
        self.world, self.whole = world, whole
        self.seed, self.terms, self.hooks, self.store = seed, terms, hooks, store
        self.precision, self.progress = precision, progress
        self.optimiser = build_optimiser(
            schedule.optimiser, net, lr=schedule.lr, weight_decay=schedule.weight_decay,
            betas=(schedule.beta1, schedule.beta2), decayed=schedule.decayed,
        )  # fmt: skip
        self._clipped: list[Tensor] = list(net.parameters())
        for hook in hooks:
            for own in hook.own():
                group = {"params": list(own.parameters), "weight_decay": 0.0, "rate": own.rate}
                self.optimiser.add_param_group({**group, "maximize": own.ascends})
                self._clipped += own.parameters if own.clipped else []
            hook.bound(self.optimiser)
        self.losses: list[float] = []
        self._start = ""

    def run(self) -> list[float]:
        """Train to the end and return the loss of every step. Raises Diverged on a loss that is not finite."""
        self._start = self.world.share("training begins", self._fingerprint()) if self.store is not None else ""
        start = self._resume()
        self._refuse_drift()
        # What a method's own backward left would be added to the first step, which after a kill is another one.
        self.net.zero_grad(set_to_none=True)
        was_training = self.net.training
        plain_float32()
        self.net.train()
        with step_by_step():
            for step in range(start, self.schedule.steps):
                self._step(step)
                self.progress(step + 1, self.schedule.steps, f"loss {self.losses[-1]:.3f}")
                due = self.store is not None and self.store.due() and step + 1 < self.schedule.steps
                stop = self._ordered()
                if due or stop:
                    self.save(step + 1)
                if stop:
                    self.world.barrier("training stops")  # the state is on disk before any worker ends
                    raise Stopped
        self._refuse_drift()
        self.net.train(was_training)
        return self.losses

    def _step(self, step: int) -> None:
        self._seed(step)
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule.lr_at(step) * group.get("rate", 1.0)
        for hook in self.hooks:
            hook.before_step(step)
        value = self._backward(step, self._batch(step))
        try:
            for hook in self.hooks:
                hook.after_backward(step)
        except NotFiniteError as error:
            raise self._diverged(step, self.batches.chosen(step), f"{error} is not finite") from error
        if self.schedule.clip:
            torch.nn.utils.clip_grad_norm_(self._clipped, self.schedule.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        for hook in self.hooks:
            hook.after_step(step)
        self.losses.append(value)

    def _seed(self, step: int, rank: int = 0) -> None:
        """Workers drop out differently, and are alike in everything else that is drawn."""
        torch.manual_seed((self.seed << 32) + step if rank == 0 else mixed(self.seed, step, rank))

    def _batch(self, step: int) -> Batch | None:
        """This worker's part of the batch, None where it has none."""
        if self.world.size == 1 or (self.whole and self.world.leads):
            return self.batches.at(step)
        return None if self.whole else self.batches.share(step, self.world.rank, self.world.size)

    def _backward(self, step: int, batch: Batch | None) -> float:
        """Add up the gradients of the batch's parts, of all workers, and return its loss."""
        if self.world.size == 1:
            return self._own_backward(step, batch)
        self._seed(step, self.world.rank)
        value = join(self._leaves(), self._own_backward(step, batch), self.world)
        self._seed(step)
        if not math.isfinite(value):  # in every worker, so that all of them stop or try something else
            raise self._diverged(step, self.batches.chosen(step), f"the loss is {value}")
        return value

    def _leaves(self) -> list[Tensor]:
        trained = [p for p in self.net.parameters() if p.requires_grad]
        more = [leaf for hook in self.hooks for part in hook.own() for leaf in part.parameters]
        return [*trained, *more, *(leaf for hook in self.hooks for leaf in hook.leaves())]

    def _own_backward(self, step: int, batch: Batch | None) -> float:
        total = 0.0
        for part, share in self._parts(batch):
            with torch.autocast(part.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                loss = self.loss(part) * share
            value = loss.item()
            if not math.isfinite(value) and self.world.size == 1:
                raise self._diverged(step, part.samples, f"the loss is {value}")
            loss.backward()
            total += value
        return total

    def _parts(self, batch: Batch | None) -> list[tuple[Batch, float]]:
        """The parts of a batch and their shares of its loss. A part without terms (pixels without a class) has none;
        of a batch without any the loss is taken all the same, and is no number."""
        parts = [] if batch is None else divided(batch, self.schedule.accumulate)
        alone = self.world.size == 1
        counts = [1] if len(parts) == 1 and alone else [self.terms(part) for part in parts]
        whole = sum(counts) if alone else summed(sum(counts), self.world)
        if not whole:
            return [] if batch is None else [(batch, 1.0)]
        return [(p, n / whole) for p, n in zip(parts, counts, strict=True) if n]

    def _ordered(self) -> bool:
        """Whether the order to stop has come to any of the workers: they leave at one step."""
        return ordered() if self.world.size == 1 else summed(int(ordered()), self.world) > 0

    def _refuse_drift(self) -> None:
        if self.world.size > 1:  # what a loss keeps is the leader's
            state = {n: v for n, v in self._state().items() if not (self.whole and n.startswith("hook."))}
            refuse_drift(state, self.world)

    def _diverged(self, step: int, samples: Sequence[Sample], what: str) -> Diverged:
        ids = ", ".join(s.id for s in list(samples)[:8])
        store = self.store
        kept = f" The last good state stays in {store.folder}." if store is not None and store.folder.is_dir() else ""
        return Diverged(f"{what} at step {step} (samples {ids} ...): lower the learning rate.{kept}")

    def save(self, step: int) -> None:
        """Store the state after `step` steps; but one that is not finite does not replace the last good one."""
        if not self.world.leads:
            return
        state = self._state()
        trained = {f"net.{name}" for name, _ in self.net.named_parameters()}
        good = all(bool(v.isfinite().all()) for k, v in state.items() if k in trained or k.startswith("optimiser."))
        if self.store is not None and good:
            self.store.save(step, state, {"start": self._start, "losses": self.losses})

    def _state(self) -> dict[str, Tensor]:
        state = {f"net.{k}": v for k, v in self.net.state_dict(keep_vars=True).items()}
        for index, slots in self.optimiser.state_dict()["state"].items():
            filled = {name: v for name, v in slots.items() if v is not None}  # SGD's, of what had no gradient yet
            state.update({f"optimiser.{index}.{name}": torch.as_tensor(v) for name, v in filled.items()})
        for number, hook in enumerate(self.hooks):
            state.update({f"hook.{number}.{k}": v for k, v in hook.state().items()})
        return state

    def _resume(self) -> int:
        """The step to go on from. A state that another start led to is not this run's: a method may train under one
        name twice, and a GPU may give another model when a killed link is repeated."""
        state = self.store.load() if self.store is not None else None
        if state is None:
            return 0
        step, tensors, log = state
        if not isinstance(log, dict) or log.get("start") != self._start:
            return 0
        self.losses = list(log["losses"])
        with torch.no_grad():
            for key, value in self.net.state_dict(keep_vars=True).items():
                value.copy_(tensors[f"net.{key}"])
        slots: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            if key.startswith("optimiser."):
                _, index, name = key.split(".", 2)
                slots.setdefault(int(index), {})[name] = value
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": slots})
        for number, hook in enumerate(self.hooks):
            prefix = f"hook.{number}."
            hook.restore({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        return step

    def _fingerprint(self) -> str:
        """What leads to every later state: the weights at the start and how they are trained."""
        trained = [name for name, parameter in self.net.named_parameters() if parameter.requires_grad]
        hooks = [type(hook).__qualname__ for hook in self.hooks]
        settings = [self.schedule.recorded(), self.seed, self.precision, hooks]
        return digest([weights_digest(self.net), trained, settings])
