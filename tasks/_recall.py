"""Recall at 1, 5 and 10 in both directions of retrieval, in percent (as itm_eval of BLIP and ALBEF has it).

tr: an image is the query and its texts are right, the best of them counts. ir: a text is the query, and the image it
was listed with is right. Ranks are pessimistic (vlbench.evaluation.ranks), so that ties are never luck, unless
ties=original.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

CUTS = (1, 5, 10)
RECALLS = tuple(f"{direction}_r{cut}" for direction in ("tr", "ir") for cut in CUTS)
METRICS: dict[str, Literal["higher", "lower"]] = dict.fromkeys(("r_mean", *RECALLS, "tr_mean", "ir_mean"), "higher")
TITLES = {
    "r_mean": "mean recall",
    **{name: f"{name[:2].upper()}@{name[4:]}" for name in RECALLS},
    **{f"{way}_mean": f"mean {way.upper()}" for way in ("tr", "ir")},
}

Array = NDArray[np.float64]


def hits(text_rank: int, image_ranks: Sequence[int]) -> list[float]:
    """The statistics of one image and its texts, whose sums give every metric: hits at each cut of the image as a
    query, 1 for it, hits at each cut summed over its texts as queries, and their number."""
    of_texts = [sum(rank < cut for rank in image_ranks) for cut in CUTS]
    return [*(float(text_rank < cut) for cut in CUTS), 1.0, *map(float, of_texts), float(len(image_ranks))]


def recalls(sums: Array) -> Array:
    """(B, 6) percent, in the order of RECALLS, of summed statistics (B, 8)."""
    return 100 * np.concatenate([sums[:, 0:3] / sums[:, 3:4], sums[:, 4:7] / sums[:, 7:8]], axis=1)


def r_mean(sums: Array) -> Array:
    """(B,) percent: the mean of the six recalls."""
    means: Array = recalls(sums).mean(axis=1)
    return means


def table(sums: Array) -> dict[str, float]:
    """Metric -> value of one row of summed statistics (8,)."""
    row = recalls(sums[None])[0]
    means = {"r_mean": row.mean(), "tr_mean": row[:3].mean(), "ir_mean": row[3:].mean()}
    metrics = {**dict(zip(RECALLS, row, strict=True)), **means}
    return {metric: float(metrics[metric]) for metric in METRICS}
