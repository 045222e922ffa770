"""What a method may learn from: the samples of train and select, batches of them, and calibration samples.

The report split cannot be reached through here: what is handed out is compared with its ids and images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..capability import Batch
from ..errors import UserError
from ..images.pipeline import ImageStore
from ..model import Model
from ..task import Role, Sample, Task, refuse_report_ids
from ..training.batches import Batches, collate
from .source import Source, refuse_few


class LearningData:
    """Samples of one task, for one model and seed. source: what calibration looks at in the place of train."""

    def __init__(self, model: Model, task: Task, images: ImageStore, seed: int, source: Source | None = None) -> None:
        self.model, self._task, self.images, self.seed, self.source = model, task, images, seed, source
        self._samples: dict[Role, Sequence[Sample]] = {}

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
            device=self.model.device, options=self._task.taught(),
        )  # fmt: skip

    def calibration(self, count: int, batch_size: int = 32) -> list[Batch]:
        """The first `count` samples of the seeded shuffle of train, or of the source that calibration= names, one an
        image, as batches. Raises UserError where it has fewer images."""
        samples = self.samples("train") if self.source is None else self.source.samples
        refuse_few(samples, count, "train" if self.source is None else f"calibration={self.source.text}")
        chosen = Batches(samples, self.images, size=count, seed=self.seed, per_image=1).chosen(0)[:count]
        parts = [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]
        return [collate(part, self.images, self.model.device, self._task.taught()) for part in parts]

    def of(self, model: Model) -> LearningData:
        """The same samples, parsed once, for a copy of the model."""
        copy = LearningData(model, self._task, self.images, self.seed, self.source)
        copy._samples = self._samples
        return copy
