"""Unstructured and n:m masks from scores. True = the weight is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError

Group = Literal["row", "matrix"]
Rule = Literal["exact", "<=", "<"]
PARTED = 256  # rows


def keep_fraction(score: Tensor, sparsity: float, group: Group = "matrix", rule: Rule = "exact") -> Tensor:
    """Keep mask of `score` (out, in): in every group the int(size * sparsity) lowest scores go.

    rule "exact": exactly that many, ties by (score, column) within a row and by (score, position) in a matrix.
    "<=" and "<" compare with the score at that position, as Wanda's and RESSA's code do: one more goes (all that tie
    with it), or all that tie with it stay.
    """
    flat = score if group == "row" else score.reshape(1, -1)
    count = int(flat.shape[1] * sparsity)
    if rule != "exact":
        at = _kth(flat, min(count, flat.shape[1] - 1) + 1)
        return ((flat > at) if rule == "<=" else (flat >= at)).view_as(score)
    if count == 0:
        return torch.ones_like(score, dtype=torch.bool)
    # A k-th value is several times faster than a stable sort of the whole group; only the ties need an order.
    at = _kth(flat, count)
    keep = flat > at
    if int(keep.count_nonzero()) < len(flat) * (flat.shape[1] - count):  # in some group not all of the tied go
        tied = flat == at
        spare = count - (flat < at).sum(1, keepdim=True)  # how many of the tied still have to go, from the left
        keep |= tied & (tied.cumsum(1) > spare)
    return keep.view_as(score)


def _kth(flat: Tensor, k: int) -> Tensor:
    """(groups, 1) the k-th lowest of every row, counted from 1. On a CPU by numpy, whose partition is vectorised:
    0.02 s for 4096 x 4096 on one core, where kthvalue takes 0.29 s on two."""
    if flat.device.type != "cpu" or flat.dtype not in (torch.float32, torch.float64):
        return flat.kthvalue(k, dim=1, keepdim=True).values
    parts = flat.detach().split(PARTED)  # partition copies: of so many rows at a time
    return torch.cat([torch.from_numpy(np.partition(p.numpy(), k - 1, axis=1)[:, k - 1 : k].copy()) for p in parts])


def keep_n_of_m(score: Tensor, n: int, m: int) -> Tensor:
    """Keep the n best of every m consecutive columns of a row; of equal scores the left one goes first.

    Raises UserError where the number of columns is not divisible by m.
    """
    rows, columns = score.shape
    if columns % m:
        raise UserError(f"a matrix of {columns} columns has no {n}:{m} pattern: {columns} is not divisible by {m}.")
    # How many of its group go before each one, by comparing whole columns in pairs: 0.06 s for 2:4 of 4096 x 4096 on
    # two cores, where sorting four million groups takes 0.22 s.
    groups = [score[:, i::m].contiguous() for i in range(m)]
    before = [torch.zeros(rows, columns // m, dtype=torch.int16, device=score.device) for _ in range(m)]
    for left, right in combinations(range(m), 2):
        first = groups[left] <= groups[right]
        before[right] += first
        before[left] += ~first
    return torch.stack([count >= m - n for count in before], -1).view(rows, columns)


@dataclass(frozen=True)
class Keep:
    """Which weights of one matrix stay, given their scores: a fraction of every group goes, or n of every m stay.

    gone: (out, in), True where a mask of before has its zeros: they are the first of those that go, and stay away.
    """

    fraction: float
    group: Group = "matrix"
    rule: Rule = "exact"
    n_m: tuple[int, int] | None = None
    gone: Tensor | None = field(default=None, compare=False)

    def __call__(self, score: Tensor) -> Tensor:
        """(out, in) scores -> (out, in) mask."""
        score = last_of_all(score, self.gone)
        keep = (
            keep_fraction(score, self.fraction, self.group, self.rule)
            if self.n_m is None
            else keep_n_of_m(score, *self.n_m)
        )
        return keep if self.gone is None else keep & ~self.gone

    def columns(self, first: int, stop: int) -> Keep:
        """The same for some of the columns alone."""
        return self if self.gone is None else replace(self, gone=self.gone[:, first:stop])


def last_of_all(score: Tensor, gone: Tensor | None) -> Tensor:
    """Scores that rank weights which are gone below all others, whatever a method thinks of zeros."""
    return score if gone is None else score.masked_fill(gone, float("-inf"))


def keep_over(scores: Mapping[str, Tensor], fraction: float, rule: Rule = "exact") -> dict[str, Tensor]:
    """One ranking over several matrices: the int(entries * fraction) lowest scores go, wherever they are."""
    joined = torch.cat([s.flatten() for s in scores.values()])[None]
    keep = keep_fraction(joined, fraction, "matrix", rule)[0].split([s.numel() for s in scores.values()])
    return {name: part.view_as(scores[name]) for name, part in zip(scores, keep, strict=True)}


class PackedMasks(MutableMapping[str, Tensor]):
    """Masks by name, held as one bit an entry: in bytes, those of a model in 16 bits would be half as large as it is.
    What is read is unpacked anew; writing into it changes nothing here."""

    def __init__(self, masks: Mapping[str, Tensor] | None = None) -> None:
        self._packed: dict[str, tuple[Tensor, torch.Size]] = {}
        self.update(masks or {})

    def __getitem__(self, name: str) -> Tensor:
        bits, shape = self._packed[name]
        return unpack(bits, shape)

    def __setitem__(self, name: str, keep: Tensor) -> None:
        self._packed[name] = (pack(keep), keep.shape)

    def __delitem__(self, name: str) -> None:
        del self._packed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)


def pack(mask: Tensor) -> Tensor:
    """Booleans of any shape -> (bytes,) uint8, one bit each (7 bytes in 8 saved; a 7B model's masks are 0.8 GB)."""
    return torch.from_numpy(np.packbits(mask.cpu().flatten().numpy()))


def unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    """What pack() was given, on the CPU."""
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=shape.numel()).view(bool)).view(shape)


def apply_masks(net: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Write zeros where a mask is False."""
    with torch.no_grad():
        for name, keep in masks.items():
            parameter = net.get_parameter(name)
            parameter.masked_fill_(~keep.to(parameter.device), 0)  # a product would make the mask a float matrix first
