"""First and second moments of a matrix's inputs, for pruners that ask by how much an input wanders.

`fluctuation` is FLAP's recursion as its code has it (CASIA-IVA-Lab/FLAP@3bb57db), where the mean of before and the new
one are one tensor: after sample n (from 1) with its tokens x and the new mean m,
    f <- f (n - 2) / (n - 1) + sum over tokens (x - m)^2 / n        (the first sample adds nothing)
It goes by the order of the samples and is no sum: two workers' cannot be put together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Moments:
    """total: (in,) sum over tokens; tokens: how many; spread: (in,) sum over samples of the variance (of the whole
    sample) over its tokens; fluctuation: see above, and the mean of the samples' means that goes with it."""

    total: Tensor
    spread: Tensor
    fluctuation: Tensor
    centre: Tensor
    tokens: int = 0
    samples: int = 0

    @classmethod
    def zeros(cls, columns: int, device: torch.device, dtype: torch.dtype) -> Moments:
        total, spread, fluctuation, centre = torch.zeros(4, columns, dtype=dtype, device=device).unbind()
        return cls(total, spread, fluctuation, centre)

    @property
    def mean(self) -> Tensor:
        """(in,) over all tokens."""
        return self.total / max(1, self.tokens)

    def variance(self, square_sum: Tensor) -> Tensor:
        """(in,) of all tokens about their mean. square_sum: over the same tokens."""
        return (square_sum / max(1, self.tokens) - self.mean.square()).clamp(min=0)

    def add(self, samples: Iterable[Tensor]) -> None:
        """Count samples, each (tokens, in) without padding."""
        for x in samples:
            if not len(x):
                continue
            x = x.to(self.total.dtype)  # (tokens, in)
            self.total += x.sum(0)
            self.tokens += len(x)
            self.samples += 1
            self.spread += x.var(0, unbiased=False)
            n = self.samples
            self.centre += (x.mean(0) - self.centre) / n
            if n > 1:
                self.fluctuation *= (n - 2) / (n - 1)
                self.fluctuation += (x - self.centre).square().sum(0) / n

    def clone(self) -> Moments:
        copied = torch.stack((self.total, self.spread, self.fluctuation, self.centre)).unbind()
        return Moments(copied[0], copied[1], copied[2], copied[3], self.tokens, self.samples)
