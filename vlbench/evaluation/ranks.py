"""Where the right candidate stands among all, for retrieval in both directions, without sorting anything."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

ROWS = 256  # images compared at once: 256 x 25,000 truth values are 6 MB

Ranks = NDArray[np.int64]


def ranks(image_to_text: Any, text_to_image: Any, owner: ArrayLike | Tensor) -> tuple[Ranks, Ranks]:
    """Ranks from 0: (images,) of the best right text for each image, and (texts,) of the right image for each text.

    image_to_text, text_to_image: scores (images, texts), arrays or tensors, higher is better; they may be one object.
    owner: (texts,) the image that each text belongs to; to the others it is wrong, also where its words are theirs.

    A rank counts the wrong candidates that are not below the best right one. It is pessimistic: candidates of the same
    score stand before the right one, and so do those whose score is NaN; a right one that is NaN is last. An image that
    owns no text has all of them before it.
    """
    forward, backward = torch.as_tensor(image_to_text), torch.as_tensor(text_to_image)
    images, texts = forward.shape
    image = torch.as_tensor(owner, dtype=torch.int64).to(forward.device)
    if backward.shape != forward.shape or image.shape != (texts,):
        shapes = [tuple(x.shape) for x in (forward, backward, image)]
        raise ValueError(f"need scores (images, texts) twice and an owner for each text, got {shapes}")
    if texts and not 0 <= int(image.min()) <= int(image.max()) < images:
        raise ValueError(f"owners must be images 0 to {images - 1}, got {int(image.min())} to {int(image.max())}")
    right, swapped = _of_pairs(forward, image), _of_pairs(backward, image.to(backward.device))
    best = _best(right, image, images)
    below = torch.zeros(images, dtype=torch.int64, device=forward.device)
    behind = torch.zeros(texts, dtype=torch.int64, device=backward.device)
    for start in range(0, images, ROWS):
        rows = slice(start, start + ROWS)
        below[rows] = (forward[rows] < best[rows, None]).sum(dim=1)
        behind += (backward[rows] < swapped).sum(dim=0)
    below -= torch.bincount(image[right < best[image]], minlength=images)  # leaves the wrong ones
    wrong = texts - torch.bincount(image, minlength=images)
    return (wrong - below).cpu().numpy(), (images - 1 - behind).cpu().numpy()


def original_ranks(image_to_text: Any, text_to_image: Any, owner: ArrayLike) -> tuple[Ranks, Ranks]:
    """As `ranks`, by the rule of BLIP's and ALBEF's itm_eval: np.argsort(scores)[::-1] of each query, in which equal
    candidates stand in whatever order numpy's default sort leaves them, reversed, which is another on another kind of
    processor. With many equal scores (candidates that were not re-ranked) this is luck, and part of the published
    numbers."""
    forward, backward = np.asarray(image_to_text), np.asarray(text_to_image)
    image = np.asarray(owner, dtype=np.int64)
    of_images = np.full(forward.shape[0], forward.shape[1], dtype=np.int64)
    for row, scores in enumerate(forward):
        right = np.flatnonzero(image[np.argsort(scores)[::-1]] == row)
        of_images[row] = right[0] if len(right) else forward.shape[1]
    of_texts = np.array(
        [np.flatnonzero(np.argsort(scores)[::-1] == row)[0] for scores, row in zip(backward.T, image, strict=True)],
        dtype=np.int64,
    )
    return of_images, of_texts


def _of_pairs(scores: Tensor, image: Tensor) -> Tensor:
    """(texts,) the score of each text with its image."""
    return scores[image, torch.arange(len(image), device=image.device)]


def _best(right: Tensor, image: Tensor, images: int) -> Tensor:
    """(images,) the highest score of each image's own texts, -inf where it has none that is a number."""
    lowest = torch.full((images,), -torch.inf, dtype=right.dtype, device=right.device)
    return lowest.scatter_reduce(0, image, right.masked_fill(right.isnan(), -torch.inf), "amax")
