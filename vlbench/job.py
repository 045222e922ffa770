"""What a method gets: the model, its structure, data of the train and select splits, and the training loop.

A job cannot reach the report split: the batches it hands out are checked against its ids.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy, deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor

from .calibration.shared import SharedWith
from .calibration.source import Source, refuse_few
from .capability import CAPABILITIES, Batch
from .compression.cut import Cut, Kept, cut
from .compression.masks import apply_masks
from .compression.state import Compression
from .errors import RunFailed, UserError
from .evaluation.loop import Evaluator
from .evaluation.predictions import Predictions
from .images.pipeline import ImageStore
from .machine.workers import ALONE, World
from .model import Model
from .structure import Structure
from .task import Role, Sample, Task, refuse_report_ids
from .tensors.checkpoint import CheckpointStore
from .training.batches import Batches, collate
from .training.loop import Hook, Loop, Schedule
from .training.memory import recomputed

EVALUATED_AT_ONCE = 64  # samples a batch of the select split

Progress = Callable[[str, int, int, str], None]


def _silent(what: str, done: int, total: int, text: str) -> None:
    """No progress wanted."""


class Job:
    """One link of a chain at work. Methods change the model through cut(), mask() and train().

    world: the workers that do this together, each in a job of its own on the same model; `train`, `evaluate_select` and
    the calibration of the engine's pruners share the work among them, and everything else is done by each. common: what
    cells beside this one can share with it, None where a link before has changed the model.
    """

    def __init__(
        self,
        model: Model,
        task: Task,
        *,
        seed: int,
        folder: Path,
        store: ImageStore,
        state: Compression | None = None,
        identity: Mapping[str, Any] | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
        dense: Callable[[], Model] | None = None,
        checkpoint_seconds: float = 15.0,
        progress: Progress = _silent,
        source: Source | None = None,
        world: World = ALONE,
        common: SharedWith | None = None,
    ) -> None:
        self.world, self.common = world, common
        self.model, self.task, self.seed, self.folder, self.images = model, task, seed, folder, store
        self.state = state or Compression()
        self.identity = dict(identity or {})
        self.precision, self.checkpoint_seconds, self._progress = precision, checkpoint_seconds, progress
        self.source = source  # what calibration looks at in the place of train
        self._samples: dict[Role, list[Sample]] = {}
        self._dense = dense
        self._teacher: Model | None = None

    @property
    def structure(self) -> Structure:
        """Where the model can be cut, as it is now."""
        return self.model.structure()

    def samples(self, role: Literal["train", "select"]) -> list[Sample]:
        """Samples a method may learn from. Raises UserError where one of them is in the report split."""
        if role not in self._samples:
            roles = self.task.roles()
            found = self.task.samples(roles[role])
            if not found:
                raise UserError(f"the split {roles[role]} of {self.task.name} is empty, and this method needs it.")
            refuse_report_ids(self.task, found)
            self._samples[role] = found
        return self._samples[role]

    def batches(self, size: int, *, per_image: int = 4) -> Batches:
        """Shuffled training batches of `size` samples, a function of (seed, step)."""
        return Batches(
            self.samples("train"),
            self.images,
            size=size,
            seed=self.seed,
            per_image=per_image,
            device=self.model.device,
        )

    def calibration(self, count: int, batch_size: int = 32) -> list[Batch]:
        """The first `count` samples of the seeded shuffle of train, or of the source that calibration= names, one an
        image, as batches. Raises UserError where it has fewer images."""
        found = self.samples("train") if self.source is None else self.source.samples
        refuse_few(found, count, "train" if self.source is None else f"calibration={self.source.text}")
        samples = Batches(found, self.images, size=count, seed=self.seed, per_image=1).chosen(0)[:count]
        parts = [samples[i : i + batch_size] for i in range(0, len(samples), batch_size)]
        return [collate(part, self.images, self.model.device) for part in parts]

    def loss(self, batch: Batch) -> Tensor:
        """The task's loss, by capability."""
        loss: Tensor = getattr(self.model, self.task.capability + "_loss")(batch)
        return loss

    def teacher(self) -> Model:
        """The dense model that the chain began with, frozen, in a copy of its own that is made once. Raises UserError
        where this job does not know it."""
        if self._teacher is None:
            if self._dense is None:
                raise UserError("there is no dense model to distil from here.")
            self._teacher = self._dense()
            self._teacher.net.eval().requires_grad_(False)
        return self._teacher

    def cut(self, keep: Kept, structure: Structure | None = None, *, kept_scale: bool = False) -> None:
        """Remove units for good. keep: units of the model as it is now, in the units of `structure` (the default one
        of every site where it is left out). kept_scale: see `pruning.cut.cut`."""
        if self.state.masks:
            raise UserError("a structured pruner cannot follow an unstructured one: put it first in the chain.")
        self._refuse_adapters()
        structure = structure or self.structure
        self.state.cuts.append(Cut.of(structure, keep, kept_scale=kept_scale))
        cut(self.model.net, structure, keep, kept_scale=kept_scale)
        self.state.pattern = "structured"

    def mask(self, masks: Mapping[str, Tensor], pattern: str) -> None:
        """Set weights to zero for good: later links keep them zero, those that mask more weights among them."""
        self._refuse_adapters()
        before = self.state.masks
        masks = {k: v.cpu() & before[k] if k in before else v.cpu() for k, v in masks.items()}
        apply_masks(self.model.net, masks)
        before.update(masks)
        structured = self.state.pattern == "structured"
        self.state.pattern = f"structured+{pattern}" if structured else pattern

    def _refuse_adapters(self) -> None:
        if self.state.adapters:
            raise UserError("nothing can be pruned where adapters stand beside weights: train them with merge=true.")

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
        stream = self.batches(schedule.batch_size)
        store = CheckpointStore(
            self.folder / "checkpoint" / stage, {**self.identity, "stage": stage}, self.checkpoint_seconds, self.world
        )
        kept: list[Hook] = [loss] if isinstance(loss, Hook) else []
        loop = Loop(
            self.model.net, loss or self.loss, stream, schedule, seed=self.seed, store=store, precision=self.precision,
            hooks=[*hooks, *kept, KeepZeros(self.model.net, self.state.masks)], terms=self._terms,
            progress=lambda done, total, text: self._progress(stage, done, total, text),
            world=self.world, whole=bool(kept) or self.compares(),
        )  # fmt: skip
        with recomputed(self.model.net, self.structure) if schedule.checkpointing == "on" else nullcontext():
            losses = loop.run()
        self.state.trained = True
        self.state.steps += schedule.steps
        self.state.samples_seen += schedule.steps * schedule.batch_size
        self.state.log[stage] = {**self.state.log.get(stage, {}), "loss": [round(x, 6) for x in losses]}
        return losses

    def _terms(self, batch: Batch) -> int:
        """How many terms the loss of a batch is the mean over."""
        counted = getattr(self.model, self.task.capability + "_terms", None)
        return int(counted(batch)) if counted is not None else len(batch.samples)

    def compares(self) -> bool:
        """Whether the task's loss compares the samples of a batch with one another."""
        capability = CAPABILITIES.get(self.task.capability)
        return capability is not None and capability.loss_over_batch

    def trial(self, name: str) -> Job:
        """A job on a copy of the model as it is now, with a folder of its own below checkpoint/: candidates that are
        tried before one is chosen. What a trial trains enters its own budget, which is the caller's to count."""
        model = copy(self.model)
        model.net = deepcopy(self.model.net)
        job = Job(
            model, self.task, seed=self.seed, folder=self.folder / "checkpoint" / name, store=self.images,
            state=Compression(masks=dict(self.state.masks), pattern=self.state.pattern, adapters=self.state.adapters),
            identity={**self.identity, "trial": name}, precision=self.precision,
            checkpoint_seconds=self.checkpoint_seconds, progress=self._progress, source=self.source,
            dense=self.teacher if self._dense is not None else None, world=self.world,
        )  # fmt: skip
        job._samples = self._samples  # parsed once
        return job

    def evaluate_select(self) -> float:
        """The task's primary metric on the select split, of the model as it is now; nothing of it stays on disk. Raises
        UserError where files of the split are missing, and RunFailed where a sample of it fails."""
        task, split = self.task, self.task.roles()["select"]
        if missing := task.missing(split):
            raise UserError("\n".join([f"{task.name} lacks data of the split {split}, which is chosen on:", *missing]))
        samples = self.samples("select")
        evaluator = Evaluator(
            self.model, task, self.images, settings={**task.settings(split), "labelled": True},
            batch_size=EVALUATED_AT_ONCE, precision=self.precision,
            progress=lambda done, total, text: self._progress("evaluate select", done, total, text),
        )  # fmt: skip
        with self._scratch() as folder:
            lines = evaluator.run(samples, Predictions(folder / "predictions.jsonl", self.world))
        failed = next((line for line in lines if line["status"] != "ok"), None)
        if failed is not None:
            raise RunFailed(f"sample {failed['id']} of {split} fails: {failed['error']}")
        return float(task.aggregate(samples, [line["score"] for line in lines])[task.metric])

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """An empty folder that all workers see, and that is gone afterwards."""
        if self.world.size == 1:
            with TemporaryDirectory(prefix="vlbench-select-") as name:
                yield Path(name)
            return
        folder = self.folder / "checkpoint" / "select"
        if self.world.leads:
            shutil.rmtree(folder, ignore_errors=True)  # a killed run's
        self.world.barrier()
        yield folder
        self.world.barrier()
        if self.world.leads:
            shutil.rmtree(folder, ignore_errors=True)

    def progress(self, what: str, done: int, total: int, text: str = "") -> None:
        self._progress(what, done, total, text)


class KeepZeros(Hook):
    """Writes the masks' zeros again after every optimiser step (weight decay and moments move them otherwise)."""

    def __init__(self, net: torch.nn.Module, masks: Mapping[str, Tensor]) -> None:
        self.net = net
        moving = {name: p for name in masks if (p := net.get_parameter(name)).requires_grad}
        self.masks = {name: masks[name].to(p.device) for name, p in moving.items()}  # moved once

    def after_step(self, step: int) -> None:
        apply_masks(self.net, self.masks)
