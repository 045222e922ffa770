"""Mean intersection over union from pixel counts, as mmsegmentation computes it (IoUMetric, mean_iou).

Counts are summed over all images before any ratio is taken: a mean of per-image values is another metric. Pixels
whose label is IGNORED count nowhere. A predicted number that is no class is no class's prediction, yet its pixel
still counts for its label.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

IGNORED = 255
NUMBERS = 256  # that a map of 8 bits can hold

Map = NDArray[np.uint8]
Array = NDArray[np.float64]


def counts(prediction: Map, label: Map, classes: int) -> NDArray[np.int64]:
    """(3 * classes,) pixels of two (H, W) maps: of each class where both say it, where the prediction says it, and
    where the label says it, in turn."""
    codes = label.astype(np.uint16) * NUMBERS + prediction
    pairs = np.bincount(codes.ravel(), minlength=NUMBERS * NUMBERS).reshape(NUMBERS, NUMBERS)[:IGNORED]
    both, predicted, labelled = pairs.diagonal(), pairs.sum(axis=0), pairs.sum(axis=1)
    return np.concatenate([both[:classes], predicted[:classes], labelled[:classes]])


def miou(sums: Array) -> Array:
    """(B,) percent of summed counts (B, 3 * classes): the mean over the classes that are predicted or labelled at
    all. 0 where none is."""
    both, predicted, labelled = np.split(sums, 3, axis=1)
    return _mean_ratio(both, predicted + labelled - both)


def macc(sums: Array) -> Array:
    """(B,) percent: the mean over the labelled classes of their pixels' accuracy."""
    both, _, labelled = np.split(sums, 3, axis=1)
    return _mean_ratio(both, labelled)


def aacc(sums: Array) -> Array:
    """(B,) percent of the labelled pixels that are right."""
    both, _, labelled = np.split(sums, 3, axis=1)
    return _mean_ratio(both.sum(axis=1, keepdims=True), labelled.sum(axis=1, keepdims=True))


def _mean_ratio(parts: Array, wholes: Array) -> Array:
    present = wholes > 0
    ratios = np.divide(parts, wholes, out=np.zeros(parts.shape), where=present)
    means: Array = 100 * ratios.sum(axis=1) / np.maximum(present.sum(axis=1), 1)
    return means
