"""What a method may learn from: the samples of train and select, batches of them, and calibration samples.

The report split cannot be reached through here: what is handed out is compared with its ids and images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from ..capability import Batch
from ..errors import UserError
from ..images.pipeline import ImageStore
from ..model import Model
from ..task import Role, Sample, Task, refuse_report_ids
from ..training.batches import Batches, collate
from ..training.domains import DomainBatches, domains_of
from .source import Source, refuse_few


class LearningData:
    """Samples of one task, for one model and seed. train: what is learnt from in the place of the task's train split;
    source: what calibration looks at in the place of either."""

    def __init__(
        self, model: Model, task: Task, images: ImageStore, seed: int, source: Source | None = None,
        train: Source | None = None,
    ) -> None:  # fmt: skip
        self.model, self._task, self.images, self.seed = model, task, images, seed
        self.source, self.train = source, train
        self._samples: dict[Role, Sequence[Sample]] = {}
        if train is not None:
            self._samples["train"] = train.samples

    def samples(self, role: Literal["train", "select"]) -> Sequence[Sample]:
        """Samples a method may learn from. Raises UserError where one of them is in the report split."""
        if role not in self._samples:
            split = self._task.split_for(role)
            samples = self._task.samples(split)
            if not samples:
                raise UserError(f"the split {split} of {self._task.name} is empty, and this method needs it.")
            refuse_report_ids(self._task, samples)
            self._samples[role] = samples
        return self._samples[role]

    def batches(self, size: int, *, per_image: int = 4) -> Batches:
        """Shuffled training batches of `size` samples, a function of (seed, step)."""
        return Batches(
            self.samples("train"), self.images, size=size, seed=self.seed, per_image=per_image,
            device=self.model.device, options=self._taught(self.train),
        )  # fmt: skip

    def by_domain(self, size: int, start: Mapping[str, float]) -> DomainBatches:
        """The same, drawn by domain at the shares `start` (those of the data where it is empty)."""
        samples = self.samples("train")
        batches = DomainBatches(
            samples, domains_of(self._task, samples), self.images, size=size, seed=self.seed,
            device=self.model.device, options=self._taught(None),
        )  # fmt: skip
        if start:
            share = torch.tensor([start[name] for name in batches.domains], dtype=torch.float64)
            batches.share_of = share / share.sum()
        return batches

    def held_out(self, count: int, batch_size: int) -> dict[str, list[Batch]]:
        """Domain -> batches of its first `count` samples of the select split."""
        samples, device, options = self.samples("select"), self.model.device, self._taught(None)
        batches: dict[str, list[Batch]] = {}
        for name, rows in domains_of(self._task, samples).items():
            few = [samples[row] for row in rows[:count]]
            parts = [few[at : at + batch_size] for at in range(0, len(few), batch_size)]
            batches[name] = [collate(part, self.images, device, options) for part in parts]
        return batches

    def _taught(self, source: Source | None) -> Mapping[str, Any]:
        """The words around the questions of a source, or of the task's own samples."""
        return self._task.taught() if source is None or source.taught is None else source.taught

    def calibration(self, count: int, batch_size: int = 32) -> list[Batch]:
        """The first `count` samples of the seeded shuffle of train, or of the source that calibration= names, one an
        image, as batches. Raises UserError where it has fewer images."""
        samples = self.samples("train") if self.source is None else self.source.samples
        own = "train" if self.train is None else f"train={self.train.text}"
        refuse_few(samples, count, own if self.source is None else f"calibration={self.source.text}")
        chosen = Batches(samples, self.images, size=count, seed=self.seed, per_image=1).chosen(0)[:count]
        parts = [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]
        options = self._taught(self.source or self.train)
        return [collate(part, self.images, self.model.device, options) for part in parts]

    def of(self, model: Model) -> LearningData:
        """The same samples, parsed once, for a copy of the model."""
        copy = LearningData(model, self._task, self.images, self.seed, self.source, self.train)
        copy._samples = self._samples
        return copy
