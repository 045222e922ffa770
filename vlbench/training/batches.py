"""Training batches as a function of (seed, step): nothing to save, nothing to lose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.images import ImageStore, normalise
from ..model import Batch
from ..task import Sample


class Batches:
    """Batch `step` of an endless stream of shuffled epochs.

    Samples of one image come together (the image is encoded once for all of them): groups are shuffled, and a batch
    takes groups until it has `size` samples, at most `per_image` of a group (which ones changes from epoch to epoch).
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        store: ImageStore,
        *,
        size: int,
        seed: int,
        per_image: int = 4,
        device: torch.device | None = None,
    ) -> None:
        self.samples, self.store, self.size, self.seed, self.per_image = samples, store, size, seed, per_image
        self.device = device or torch.device("cpu")
        groups: dict[tuple[Path, ...], list[int]] = {}
        for i, sample in enumerate(samples):
            groups.setdefault(sample.images, []).append(i)
        self.groups = list(groups.values())
        self._epochs: dict[int, list[list[int]]] = {}
        self.batches_per_epoch = len(self._epoch(0))

    def at(self, step: int, options: Mapping[str, Any] | None = None) -> Batch:
        """The batch of `step`, on the device, normalised."""
        epoch, index = divmod(step, self.batches_per_epoch)
        plan = self._epoch(epoch)
        return collate([self.samples[i] for i in plan[index % len(plan)]], self.store, self.device, options)

    def _epoch(self, epoch: int) -> list[list[int]]:
        """Lists of sample indices, one a batch; the last incomplete batch is dropped unless it is the only one."""
        if epoch in self._epochs:
            return self._epochs[epoch]
        rng = np.random.default_rng([self.seed, epoch])
        batches: list[list[int]] = [[]]
        for g in rng.permutation(len(self.groups)):
            group = self.groups[g]
            take = min(self.per_image, len(group), self.size)
            chosen = sorted(rng.choice(len(group), take, replace=False).tolist())
            if len(batches[-1]) + take > self.size and batches[-1]:
                batches.append([])
            batches[-1] += [group[i] for i in chosen]
        if len(batches) > 1:
            batches.pop()
        self._epochs = {epoch: batches}
        return batches


def collate(
    samples: Sequence[Sample],
    store: ImageStore,
    device: torch.device,
    options: Mapping[str, Any] | None = None,
) -> Batch:
    """Samples -> Batch: every distinct image decoded once, owners non-decreasing where samples of an image adjoin."""
    paths: dict[Path, int] = {}
    for sample in samples:
        for path in sample.images:
            paths.setdefault(path, len(paths))
    images = normalise(store.load(list(paths)).to(device, non_blocking=True), store.spec)
    owner = torch.tensor([[paths[p] for p in s.images] for s in samples], device=device)
    return Batch(samples, images, owner, options or {})
