"""Gates that are drawn: hard concrete variables, and the Lagrangian that leads them to a target (Louizos et al. 2018,
arXiv 1712.01312; Sheared LLaMA, Xia et al. 2024, arXiv 2310.06694).

    a: the parameter of a unit; u uniform in (0, 1), drawn anew every step; b = 2/3, l = -0.1, r = 1.1
    z = clip(sigmoid((log u - log(1 - u) + a) / b) (r - l) + l, 0, 1)         the gate of the step
    q = 1 - sigmoid(b log(-l / r) - a)                                        the probability that z > 0

For structure k with its expected sparsity s = 1 - mean q (of every row: a layer's heads), target t, multipliers x, y:
    sum over k of the mean over rows of  x (s - t) + y (s - t)^2              descended by a, ascended by x and y
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..compression.depth import key_of
from ..compression.width import key_of_width
from ..structure import Stream, Structure

LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3
EDGE = 1e-6  # what is drawn, and every probability, stays so far from 0 and 1
SHARPNESS = 0.8  # of the gate without a draw, as published
LEAST, MOST = math.log(1e-2), math.log(1e2)  # of a


def clamp(a: Tensor) -> None:
    """In place, before a draw."""
    with torch.no_grad():
        a.clamp_(LEAST, MOST)


def drawn(a: Tensor, uniform: Tensor) -> Tensor:
    """The gates of a step."""
    s = torch.sigmoid((uniform.log() - (1 - uniform).log() + a) / TEMPERATURE)
    return (s * (HIGH - LOW) + LOW).clamp(0, 1)


def uniform_like(a: Tensor) -> Tensor:
    return torch.rand_like(a) * (1 - 2 * EDGE) + EDGE


def keep_probability(a: Tensor) -> Tensor:
    return 1 - torch.sigmoid(TEMPERATURE * math.log(-LOW / HIGH) - a).clamp(EDGE, 1 - EDGE)


def settled(a: Tensor, gone: int | None = None) -> Tensor:
    """The gates without a draw, of one row: the `gone` least are 0 (as many as are expected to be, where it is left
    out), the others soft. Of equal ones the left one goes."""
    soft = torch.sigmoid(SHARPNESS * a / TEMPERATURE)  # (units,)
    if gone is None:
        gone = round(len(a) - float(keep_probability(a).sum()))
    soft = soft.clone()
    soft[soft.sort(stable=True).indices[:gone]] = 0
    return soft


@dataclass(frozen=True)
class Pair:
    """Two multipliers, 0 at first."""

    first: Tensor
    second: Tensor

    @classmethod
    def zeros(cls, device: torch.device) -> Pair:
        first, second = (torch.zeros((), device=device, requires_grad=True) for _ in range(2))
        return cls(first, second)

    def term(self, excess: Tensor) -> Tensor:
        """excess: (rows,) or (), expected sparsity less its target."""
        return (self.first * excess + self.second * excess.square()).mean()


def expected_sparsity(a: Tensor) -> Tensor:
    """(..., units) -> (...)."""
    return 1 - keep_probability(a).mean(-1)


def target_at(target: float, step: int, warmup: int) -> float:
    """The target of a step: it grows from 0 linearly."""
    return target * min(1.0, step / warmup) if warmup else target


def expected_entries(structure: Structure, keep: Mapping[str, Tensor]) -> Tensor:
    """Entries of the prunable set that are expected to stay. keep: key of a cut -> (units,) probabilities that each
    unit stays, independent of one another; what it does not name stays whole."""
    owners = {site.name: site.slices for site in structure.sites}
    owners |= {key_of_width(t): t.stream.slices for t in structure.towers if isinstance(t.stream, Stream)}
    lost: dict[tuple[str, int], Tensor] = {}
    for name, probability in keep.items():
        for part in owners.get(name, ()):
            gone = part.index.shape[1] * (1 - probability).sum()  # (), rows or columns of the matrix
            lost[part.param, part.dim] = lost.get((part.param, part.dim), torch.zeros_like(gone)) + gone
    total = torch.zeros(())
    for tower in structure.towers:
        alive = keep.get(key_of(tower))
        for number, block in enumerate(tower.blocks):
            for name, shape in {n: s for site in block.sites for n, s in site.matrices.items()}.items():
                rows, columns = (size - lost.get((name, dim), torch.zeros(())) for dim, size in enumerate(shape))
                total = total + rows * columns * (1 if alive is None else alive[number])
    return total
