"""Which samples are evaluated together. Made from the whole split, before anything is sharded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..task import Sample


def batch_plan(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """Batches of at most `size` samples (more only where one image has more).

    Samples of an image come together, so that it is encoded once; groups are sorted by their longest text, so that
    little is padded. A function of the split and `size` alone: resumed and sharded runs make the same batches.
    """
    groups: dict[tuple[Path, ...], list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.images, []).append(sample)
    ordered = sorted(groups.values(), key=lambda g: (max(len(s.text.split()) for s in g), g[0].id))
    batches: list[list[Sample]] = []
    for group in ordered:
        if not batches or len(batches[-1]) + len(group) > size:
            batches.append([])
        batches[-1] += group
    return batches
