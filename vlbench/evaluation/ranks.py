"""Ranks of the right answers in a matrix of scores, pessimistic among equals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def ranks(image: NDArray[np.float32], text: NDArray[np.float32], owner: Ints) -> tuple[Ints, Ints]:
    """Ranks from 0 of each image's best text (image, (I, T)) and of each text's image (text, (I, T) too)."""
    right = owner[None, :] == np.arange(len(image))[:, None]
    best = np.where(right, image, -np.inf).max(axis=1, keepdims=True)
    of_images = ((image >= best) & ~right).sum(axis=1)
    own = text[owner, np.arange(len(owner))]
    of_texts = (text >= own[None, :]).sum(axis=0) - 1
    return of_images.astype(np.int64), of_texts.astype(np.int64)
