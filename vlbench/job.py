"""What a method gets: data to learn from, the model with the verbs that change it, training and evaluation.

A job lives for one link of a chain on one model. Whoever runs the link makes it, calls `method.apply(job)` once, and
saves what `job.changes` says was done; nothing else that a method does to the model survives.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor

from .calibration.data import LearningData
from .calibration.shared import SharedWith
from .calibration.source import Source
from .capability import Batch, Capability, capability_of
from .compression.changes import Changes
from .compression.masks import apply_masks
from .compression.state import Compression
from .errors import RunFailed, UserError
from .evaluation.loop import Evaluator
from .evaluation.predictions import Predictions
from .images.pipeline import ImageStore
from .machine.workers import ALONE, World
from .model import Model
from .nn.spread import widen_to_train
from .task import Task, for_learning
from .tensors.checkpoint import CheckpointStore
from .training.domains import DynamicStream, parse_numbers
from .training.loop import Hook, Loop, Schedule
from .training.memory import recomputed

EVALUATED_AT_ONCE = 64  # samples a batch of the select split
HELD_AT_ONCE = 32  # samples a batch of a domain's held-out loss

Progress = Callable[[str, int, int, str], None]


def _silent(what: str, done: int, total: int, text: str) -> None:
    """No progress wanted."""


@dataclass(frozen=True)
class Surroundings:
    """Where and how a link works, the same for all parts of its job.

    folder: of the cell; a link writes below its checkpoint/ alone. identity: what a checkpoint must agree on to be
    resumed. world: the workers that do this together, each in a job of its own on the same model; training, evaluation
    and the walks of calibration share the work among them, and everything else is done by each. shared: the cells that
    can share a calibration with this one, None where a link before has changed the model.
    """

    seed: int
    folder: Path
    identity: Mapping[str, Any] = field(default_factory=dict)
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_seconds: float = 15.0
    progress: Progress = _silent
    world: World = ALONE
    shared: SharedWith | None = None

    def store(self, stage: str, *parts: str, every_seconds: float | None = None, **more: Any) -> CheckpointStore:
        """Where a stage's state is kept between an interruption and the next run: checkpoint/STAGE/PARTS. more: what
        else of it must agree. every_seconds: the cell's own interval where it is left out."""
        seconds = self.checkpoint_seconds if every_seconds is None else every_seconds
        identity = {**self.identity, "stage": stage, **more}
        return CheckpointStore(self.folder.joinpath("checkpoint", stage, *parts), identity, seconds, self.world)


class Job:
    """One link of a chain at work, in three parts: `data`, what may be learnt from; `changes`, the model with cut() and
    mask(); and train() and evaluate_select(). dense: makes the dense model that the chain began with, for teacher().
    """

    def __init__(
        self,
        model: Model,
        task: Task,
        images: ImageStore,
        here: Surroundings,
        *,
        state: Compression | None = None,
        dense: Callable[[], Model] | None = None,
        source: Source | None = None,
        train: Source | None = None,
    ) -> None:
        self.model, self.task, self.here = model, for_learning(task), here
        self.data = LearningData(model, task, images, here.seed, source, train)
        self.changes = Changes(model, state)
        self._dense = dense
        self._teacher: Model | None = None

    @cached_property
    def capability(self) -> Capability[Any]:
        """What the task asks of the model."""
        return capability_of(self.task.capability)

    def loss(self, batch: Batch) -> Tensor:
        """The task's loss, by capability."""
        return self.capability.loss(self.model, batch)

    def teacher(self) -> Model:
        """The dense model that the chain began with, frozen, in a copy of its own that is made once. Raises UserError
        where this job does not know it."""
        if self._teacher is None:
            if self._dense is None:
                raise UserError("there is no dense model to distil from here.")
            self._teacher = self._dense()
            self._teacher.net.eval().requires_grad_(False)
        return self._teacher

    def train(
        self,
        stage: str,
        schedule: Schedule,
        hooks: Sequence[Hook] = (),
        loss: Callable[[Batch], Tensor] | None = None,
    ) -> list[float]:
        """Train every parameter that requires a gradient on the task's loss, or on `loss`; returns the losses.

        Zeros of a mask stay zero. Resumes at the last saved step. A loss that keeps something from step to step is a
        Hook, too. Several workers share a batch; a loss that compares its samples, or is a Hook, is the leader's alone.
        """
        here, state = self.here, self.changes.state
        widen_to_train(self.model.net)
        kept: list[Hook] = [loss] if isinstance(loss, Hook) else []
        stream = [self._stream(schedule)] if schedule.stream == "dynamic" else []
        batches = stream[0].batches if stream else self.data.batches(schedule.batch_size)
        loop = Loop(
            self.model.net, loss or self.loss, batches, schedule, seed=here.seed,
            store=here.store(stage), precision=here.precision, terms=self._terms,
            hooks=[*stream, *hooks, *kept, KeepZeros(self.model.net, state.masks)],
            progress=lambda done, total, text: here.progress(stage, done, total, text),
            world=here.world, whole=bool(kept) or self.compares(),
        )  # fmt: skip
        with recomputed(self.model.net, self.changes.structure) if schedule.checkpointing == "on" else nullcontext():
            losses = loop.run()
        state.trained = True
        state.steps += schedule.steps
        state.samples_seen += batches.seen(schedule.steps)
        state.log[stage] = {**state.log.get(stage, {}), "loss": [round(x, 6) for x in losses]}
        for hook in stream:
            state.log[stage] |= hook.recorded()
        return losses

    def _stream(self, schedule: Schedule) -> DynamicStream:
        """What draws the batches of stream=dynamic. The reference is the dense model's loss where none is given."""
        reference = parse_numbers(schedule.stream_reference)
        held = self.data.held_out(schedule.stream_samples, HELD_AT_ONCE)
        if not reference:
            reference = self._losses(self.teacher(), held)
        batches = self.data.by_domain(schedule.batch_size, parse_numbers(schedule.stream_start))
        if lacking := [name for name in batches.domains if name not in held]:
            raise UserError(f"the select split has no sample of the domain {lacking[0]}: leave stream=dynamic away.")
        return DynamicStream(
            batches, lambda: self._losses(self.model, held), reference, every=schedule.stream_every,
            rule=schedule.stream_rule, world=self.here.world,
        )  # fmt: skip

    def _losses(self, model: Model, batches: Mapping[str, Sequence[Batch]]) -> dict[str, float]:
        """Name -> mean loss over the terms of some batches. Neither dropout nor what it draws is noticed outside."""
        was_training, device = model.net.training, model.device
        model.net.eval()
        mean_losses = {}
        with torch.random.fork_rng([] if device.type == "cpu" else [device]), torch.no_grad():
            for name, parts in batches.items():
                terms = [self.capability.terms(model, part) for part in parts]
                sums = [float(self.capability.loss(model, part)) * n for part, n in zip(parts, terms, strict=True) if n]
                mean_losses[name] = sum(sums) / max(1, sum(terms))
        model.net.train(was_training)
        return mean_losses

    def _terms(self, batch: Batch) -> int:
        """How many terms the loss of a batch is the mean over."""
        return self.capability.terms(self.model, batch)

    def compares(self) -> bool:
        """Whether the task's loss compares the samples of a batch with one another."""
        return self.capability.loss_over_batch

    def trial(self, name: str) -> Job:
        """A job on a copy of the model as it is now, with a folder of its own below checkpoint/: candidates that are
        tried before one is chosen. What a trial trains enters its own budget, which is the caller's to count."""
        here = self.here
        changes = self.changes.trial()
        job = Job(
            changes.model, self.task, self.data.images,
            replace(here, folder=here.folder / "checkpoint" / name, identity={**here.identity, "trial": name}),
            dense=self.teacher if self._dense is not None else None,
        )  # fmt: skip
        job.changes, job.data = changes, self.data.of(changes.model)
        return job

    def evaluate_select(self) -> float:
        """The task's primary metric on the select split, of the model as it is now; nothing of it stays on disk. Raises
        UserError where files of the split are missing, and RunFailed where a sample of it fails."""
        task, split = self.task, self.task.split_for("select")
        if missing := task.missing(split):
            raise UserError("\n".join([f"{task.name} lacks data of the split {split}, which is chosen on:", *missing]))
        samples = self.data.samples("select")
        evaluator = Evaluator(
            self.model, task, self.data.images, settings={**task.settings(split), "labelled": True},
            batch_size=EVALUATED_AT_ONCE, precision=self.here.precision,
            progress=lambda done, total, text: self.here.progress("evaluate select", done, total, text),
        )  # fmt: skip
        with self._scratch() as folder:
            lines = evaluator.run(samples, Predictions(folder / "predictions.jsonl", self.here.world))
        failed = next((line for line in lines if line["status"] != "ok"), None)
        if failed is not None:
            raise RunFailed(f"sample {failed['id']} of {split} fails: {failed['error']}")
        return float(task.aggregate(samples, [line["score"] for line in lines])[task.metric])

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """An empty folder that all workers see, and that is gone afterwards."""
        if self.here.world.size == 1:
            with TemporaryDirectory(prefix="vlbench-select-") as name:
                yield Path(name)
            return
        folder = self.here.folder / "checkpoint" / "select"
        if self.here.world.leads:
            shutil.rmtree(folder, ignore_errors=True)  # a killed run's
        self.here.world.barrier("select begins")
        yield folder
        self.here.world.barrier("select ends")
        if self.here.world.leads:
            shutil.rmtree(folder, ignore_errors=True)


class KeepZeros(Hook):
    """Writes the masks' zeros again after every optimiser step (weight decay and moments move them otherwise)."""

    def __init__(self, net: torch.nn.Module, masks: Mapping[str, Tensor]) -> None:
        self.net = net
        moving = {name: p for name in masks if (p := net.get_parameter(name)).requires_grad}
        self.masks = {name: masks[name].to(p.device) for name, p in moving.items()}  # moved once

    def after_step(self, step: int) -> None:
        apply_masks(self.net, self.masks)
