"""What a method gets: the model, its structure, data of the train and select splits, and the training loop.

A job cannot reach the report split: the batches it hands out are checked against its ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .data.images import ImageStore
from .errors import UserError
from .model import Batch, Model
from .pruning.cut import Cut, Kept, cut
from .pruning.masks import apply_masks
from .record import Budget
from .structure import Structure
from .task import Role, Sample, Task
from .training.batches import Batches, collate
from .training.checkpoint import CheckpointStore
from .training.loop import Hook, Loop, Schedule

Progress = Callable[[str, int, int, str], None]


def _silent(what: str, done: int, total: int, text: str) -> None:
    """No progress wanted."""


@dataclass
class Compression:
    """What has been done to the model so far. cuts: in order; masks: of the weights of the model as it is now."""

    cuts: list[Cut] = field(default_factory=list)
    masks: dict[str, Tensor] = field(default_factory=dict)
    pattern: str = "dense"
    trained: bool = False
    steps: int = 0
    samples_seen: int = 0
    log: dict[str, Any] = field(default_factory=dict)

    @property
    def budget(self) -> Budget:
        return Budget(steps=self.steps, samples_seen=self.samples_seen)


class Job:
    """One link of a chain at work. Methods change the model through cut(), mask() and train()."""

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
        checkpoint_seconds: float = 15.0,
        progress: Progress = _silent,
    ) -> None:
        self.model, self.task, self.seed, self.folder, self.images = model, task, seed, folder, store
        self.state = state or Compression()
        self.identity = dict(identity or {})
        self.precision, self.checkpoint_seconds, self._progress = precision, checkpoint_seconds, progress
        self._samples: dict[Role, list[Sample]] = {}

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
        """The first `count` samples of the seeded shuffle of train, one an image, as batches. Raises UserError where
        train has fewer images."""
        samples = list(self.batches(count, per_image=1).at(0).samples)[:count]
        if len(samples) < count:
            raise UserError(
                f"{count} calibration samples were asked for, and train shows {len(samples)} images: ask for fewer."
            )
        parts = [samples[i : i + batch_size] for i in range(0, len(samples), batch_size)]
        return [collate(part, self.images, self.model.device) for part in parts]

    def loss(self, batch: Batch) -> Tensor:
        """The task's loss, by capability."""
        loss: Tensor = getattr(self.model, self.task.capability + "_loss")(batch)
        return loss

    def cut(self, keep: Kept, structure: Structure | None = None) -> None:
        """Remove units for good. keep: units of the model as it is now, in the units of `structure` (the default one
        of every site where it is left out)."""
        if self.state.masks:
            raise UserError("a structured pruner cannot follow an unstructured one: put it first in the chain.")
        structure = structure or self.structure
        self.state.cuts.append(Cut.of(structure, keep))
        cut(self.model.net, structure, keep)
        self.state.pattern = "structured"

    def mask(self, masks: Mapping[str, Tensor], pattern: str) -> None:
        """Set weights to zero for good: later links keep them zero."""
        apply_masks(self.model.net, masks)
        self.state.masks.update({k: v.cpu() for k, v in masks.items()})
        structured = self.state.pattern == "structured"
        self.state.pattern = f"structured+{pattern}" if structured else pattern

    def train(self, stage: str, schedule: Schedule, hooks: Sequence[Hook] = ()) -> list[float]:
        """Train every parameter that requires a gradient on the task's loss; returns the losses.

        Zeros of a mask stay zero. Resumes at the last saved step.
        """
        stream = self.batches(schedule.batch_size)
        store = CheckpointStore(
            self.folder / "checkpoint" / stage, {**self.identity, "stage": stage}, self.checkpoint_seconds
        )
        loop = Loop(
            self.model.net, self.loss, stream, schedule, seed=self.seed, store=store, precision=self.precision,
            hooks=[*hooks, KeepZeros(self.model.net, self.state.masks)],
            progress=lambda done, total, text: self._progress(stage, done, total, text),
        )  # fmt: skip
        losses = loop.run()
        self.state.trained = True
        self.state.steps += schedule.steps
        self.state.samples_seen += schedule.steps * schedule.batch_size
        self.state.log[stage] = {**self.state.log.get(stage, {}), "loss": [round(x, 6) for x in losses]}
        return losses

    def progress(self, what: str, done: int, total: int, text: str = "") -> None:
        self._progress(what, done, total, text)


class KeepZeros(Hook):
    """Writes the masks' zeros again after every optimiser step (weight decay and moments move them otherwise)."""

    def __init__(self, net: torch.nn.Module, masks: Mapping[str, Tensor]) -> None:
        self.net = net
        self.masks = {name: keep.to(net.get_parameter(name).device) for name, keep in masks.items()}  # moved once

    def after_step(self, step: int) -> None:
        apply_masks(self.net, self.masks)


def refuse_report_ids(task: Task, samples: Sequence[Sample]) -> None:
    """Raise UserError where a sample that a method would learn from is in the report split, or shows an image of it."""
    report = task.roles()["report"]
    if task.missing(report):
        return  # nothing to compare with: the report split is not on this machine
    theirs = task.samples(report)
    ids = {s.id for s in theirs}
    images = {p for s in theirs for p in s.images}
    shared = [s.id for s in samples if s.id in ids or any(p in images for p in s.images)]
    if shared:
        raise UserError(
            f"{len(shared)} samples of the report split {report} of {task.name} are in the data a method would learn "
            f"from (first: {', '.join(shared[:3])}): remove them from the training annotations."
        )
