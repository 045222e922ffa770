"""Unstructured and n:m masks from scores. True = the weight is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import UserError

Group = Literal["row", "matrix"]
Rule = Literal["exact", "<=", "<"]


def keep_fraction(score: Tensor, sparsity: float, group: Group = "matrix", rule: Rule = "exact") -> Tensor:
    """Keep mask of `score` (out, in): in every group the int(size * sparsity) lowest scores go.

    rule "exact": exactly that many, ties by (score, column) within a row and by (score, position) in a matrix.
    "<=" and "<" compare with the score at that position, as Wanda's and RESSA's code do: one more goes (all that tie
    with it), or all that tie with it stay.
    """
    flat = score if group == "row" else score.reshape(1, -1)
    count = int(flat.shape[1] * sparsity)
    if rule != "exact":
        at = flat.kthvalue(min(count, flat.shape[1] - 1) + 1, dim=1, keepdim=True).values
        return ((flat > at) if rule == "<=" else (flat >= at)).view_as(score)
    if count == 0:
        return torch.ones_like(score, dtype=torch.bool)
    # kthvalue is several times faster than a stable sort of the whole group; only the ties need an order.
    at = flat.kthvalue(count, dim=1, keepdim=True).values
    keep = flat > at
    tied = flat == at
    spare = count - (flat < at).sum(1, keepdim=True)  # how many of the tied still have to go, from the left
    if not torch.equal(tied.sum(1, keepdim=True), spare):  # else all go, and 8 bytes an entry need not be counted in
        keep |= tied & (tied.cumsum(1) > spare)
    return keep.view_as(score)


def keep_n_of_m(score: Tensor, n: int, m: int) -> Tensor:
    """Keep the n best of every m consecutive columns of a row; of equal scores the left one goes first.

    Raises UserError where the number of columns is not divisible by m.
    """
    rows, columns = score.shape
    if columns % m:
        raise UserError(f"a matrix of {columns} columns has no {n}:{m} pattern: {columns} is not divisible by {m}.")
    order = score.reshape(rows, columns // m, m).sort(dim=-1, stable=True).indices
    keep = torch.ones_like(order, dtype=torch.bool)
    keep.scatter_(-1, order[..., : m - n], False)
    return keep.view(rows, columns)


@dataclass(frozen=True)
class Keep:
    """Which weights of one matrix stay, given their scores: a fraction of every group goes, or n of every m stay."""

    fraction: float
    group: Group = "matrix"
    rule: Rule = "exact"
    n_m: tuple[int, int] | None = None

    def __call__(self, score: Tensor) -> Tensor:
        """(out, in) scores -> (out, in) mask."""
        if self.n_m is not None:
            return keep_n_of_m(score, *self.n_m)
        return keep_fraction(score, self.fraction, self.group, self.rule)


def keep_over(scores: Mapping[str, Tensor], fraction: float, rule: Rule = "exact") -> dict[str, Tensor]:
    """One ranking over several matrices: the int(entries * fraction) lowest scores go, wherever they are."""
    joined = torch.cat([s.flatten() for s in scores.values()])[None]
    keep = keep_fraction(joined, fraction, "matrix", rule)[0].split([s.numel() for s in scores.values()])
    return {name: part.view_as(scores[name]) for name, part in zip(scores, keep, strict=True)}


def apply_masks(net: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Write zeros where a mask is False."""
    with torch.no_grad():
        for name, keep in masks.items():
            net.get_parameter(name).mul_(keep.to(net.get_parameter(name).device))
