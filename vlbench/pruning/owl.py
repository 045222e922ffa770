"""OWL's allocation (Yin et al. 2024, arXiv 2310.05175): blocks with more outliers among their Wanda scores keep more.

D_b = part of the block's scores |W_ij| ||X_j|| above M times their mean, in per cent
kept_b = 1 - s + 2 lambda (D_b - min D) / (max D - min D), moved so that the mean over the blocks is 1 - s
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

LEAST = 0.01  # no block is pruned less, as in the published code


def outliers(scores: Sequence[Tensor], multiple: float) -> float:
    """Per cent of all scores of a block, of whatever matrices, above `multiple` times their mean."""
    joined = torch.cat([score.flatten().float() for score in scores])
    return float((joined > joined.mean() * multiple).double().mean() * 100)


def owl(percent: Sequence[float], sparsity: float, span: float) -> list[float]:
    """Sparsity of each block from its outliers, as the published code has it: all blocks count alike. Blocks with as
    many outliers each (where the code divides by zero) get the same."""
    d = torch.tensor(list(percent), dtype=torch.float64)
    width = d.max() - d.min()
    moved = (d - d.min()) / width * 2 * span if float(width) > 0 else torch.zeros_like(d)
    ratios: list[float] = (sparsity - moved + moved.mean()).clamp(LEAST, 1).tolist()
    return ratios


def met(ratios: Mapping[str, float], sizes: Mapping[str, int], sparsity: float) -> dict[str, float]:
    """The ratios moved by one number, so that their mean by entries is the target: blocks differ in size, and the
    published mean over blocks misses it. Bisection, as ratios end at 0 and at 1."""
    total = sum(sizes.values())

    def moved(by: float) -> dict[str, float]:
        return {name: min(0.999, max(0.0, ratio + by)) for name, ratio in ratios.items()}

    low, high = -1.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        gone = sum(ratio * sizes[name] for name, ratio in moved(middle).items())
        low, high = (middle, high) if gone < sparsity * total else (low, middle)
    return moved((low + high) / 2)
