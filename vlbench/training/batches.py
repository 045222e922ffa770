"""Training batches as a function of (seed, step): nothing to save, nothing to lose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..capability import Batch, owners
from ..images.maps import IGNORED, LabelMap, read_map
from ..images.pipeline import ImageStore, normalise, on_device
from ..images.spec import ImageSpec
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
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.samples, self.store, self.size, self.seed, self.per_image = samples, store, size, seed, per_image
        self.device = device or torch.device("cpu")
        self.options = options or {}  # of every batch
        groups: dict[tuple[Path, ...], list[int]] = {}
        for i, sample in enumerate(samples):
            groups.setdefault(sample.images, []).append(i)
        self.groups = list(groups.values())
        self._epochs: dict[int, list[list[int]]] = {}
        self.batches_per_epoch = len(self._epoch(0))

    def at(self, step: int) -> Batch:
        """The batch of `step`, on the device, normalised."""
        return collate(self.chosen(step), self.store, self.device, self.options, seed=(self.seed, step))

    def share(self, step: int, rank: int, size: int) -> Batch | None:
        """Part `rank` of the `size` parts (`divided`) of that batch; None where it has too few samples. Images of other
        parts are not read, but where they are cropped: the places are drawn for the whole batch."""
        samples = self.chosen(step)
        count = min(size, len(samples))
        if rank >= count:
            return None
        if self.store.spec.resize == "keep":
            return divided(self.at(step), size)[rank]
        start, end = (len(samples) * i // count for i in (rank, rank + 1))
        return collate(samples[start:end], self.store, self.device, self.options)

    def chosen(self, step: int) -> list[Sample]:
        """The samples of that batch, without their images."""
        epoch, index = divmod(step, self.batches_per_epoch)
        plan = self._epoch(epoch)
        return [self.samples[i] for i in plan[index % len(plan)]]

    def seen(self, steps: int) -> int:
        """How many samples the first `steps` batches hold: fewer than steps x size where images have few samples, or
        the split has less than a batch."""
        return sum(len(self.chosen(step)) for step in range(steps))

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
    *,
    seed: Sequence[int] = (0,),
) -> Batch:
    """Samples -> training batch: every distinct image decoded once, owners non-decreasing where samples of an image
    adjoin. Images that keep their shapes are cropped, with their class maps, at places drawn from `seed`."""
    paths: dict[Path, int] = {}
    for sample in samples:
        for path in sample.images:
            paths.setdefault(path, len(paths))
    pixels = store.load(list(paths))
    images: Any
    maps = None
    if store.spec.resize == "keep":
        images, maps = crops(samples, dict(zip(paths, pixels, strict=True)), store.spec, np.random.default_rng(seed))
        images, maps = images.to(device), None if maps is None else maps.to(device)
    else:
        images = on_device(pixels, store.spec, device, torch.float32)
    owner = owners([[paths[p] for p in s.images] for s in samples], device)
    return Batch(samples, images, owner, options or {}, [store.sizes[p] for p in paths], maps)


def divided(batch: Batch, parts: int) -> list[Batch]:
    """The batch in `parts` of almost equal size (fewer where it has fewer samples), each with its own images only."""
    count = min(parts, len(batch.samples))
    bounds = [len(batch.samples) * i // count for i in range(count + 1)]
    return [batch] if count == 1 else [_part(batch, *pair) for pair in pairwise(bounds)]


def _part(batch: Batch, start: int, end: int) -> Batch:
    rows, owner = _renumbered(batch.owner[start:end])
    return replace(
        batch,
        samples=batch.samples[start:end],
        images=[batch.images[i] for i in rows] if isinstance(batch.images, list) else batch.images[rows],
        owner=owner,
        sizes=[batch.sizes[i] for i in rows] if batch.sizes else (),
        maps=None if batch.maps is None else batch.maps[start:end],
    )


def _renumbered(owner: Any) -> tuple[list[int], Any]:
    """The images that some samples show, in order, and `owner` counted in these."""
    if not isinstance(owner, list):
        used, places = owner.unique(return_inverse=True)
        return used.tolist(), places
    rows = sorted({i for row in owner for i in row})
    return rows, [[rows.index(i) for i in row] for row in owner]


def crops(
    samples: Sequence[Sample], pixels: Mapping[Path, Tensor], spec: ImageSpec, rng: np.random.Generator
) -> tuple[Tensor, Tensor | None]:
    """(I, 3, size, size) normalised crops of the images, and (n, size, size) of the samples' class maps (None where the
    targets are no maps). What lies outside an image is 0 (its mean colour), and ignored in its map."""
    size = spec.size
    at, cut = {}, []
    for path, image in pixels.items():
        spare = [max(0, side - size) for side in image.shape[1:]]
        top, left = (int(rng.integers(0, s + 1)) for s in spare)
        at[path] = top, left
        part = normalise(image[:, top : top + size, left : left + size], spec)
        cut.append(F.pad(part, (0, size - part.shape[2], 0, size - part.shape[1])))
    if not all(isinstance(s.target, LabelMap) for s in samples):
        return torch.stack(cut), None
    maps = []
    for sample in samples:
        path = sample.images[0]
        numbers = torch.from_numpy(read_map(sample.target).astype(np.int64))[None, None].float()
        whole = F.interpolate(numbers, size=pixels[path].shape[1:], mode="nearest-exact")[0, 0].long()
        top, left = at[path]
        part = whole[top : top + size, left : left + size]
        maps.append(F.pad(part, (0, size - part.shape[1], 0, size - part.shape[0]), value=IGNORED))
    return torch.stack(cut), torch.stack(maps)
