"""How a structured target is spread over the sites: importance of units + their cost -> which units stay."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..compression.cut import Kept
from ..errors import UserError


def uniform(importance: Mapping[str, Tensor], fraction: float, multiple_of: int = 1) -> Kept:
    """Every site loses the same fraction of its units: the least important ones, at least one stays.

    importance: site -> (units,), larger = more important, ties: the unit with the larger index goes first.
    """
    kept: Kept = {}
    for name, score in importance.items():
        count = _rounded(len(score) * (1 - fraction), len(score), multiple_of)
        kept[name] = _best(score, count)
    return kept


def unified(importance: Mapping[str, Tensor], cost: Mapping[str, float], fraction: float, multiple_of: int = 1) -> Kept:
    """One ranking over all units of all sites (UPop's unified search): the least important go until the removed cost
    is nearest to `fraction` of the total. Every site keeps its best unit.

    importance: comparable across sites, larger = more important. cost: site -> cost of one of its units. Raises
    UserError, naming the reachable maximum, where the target cannot be met with one unit a site.
    """
    refuse_unreachable({name: len(score) for name, score in importance.items()}, cost, fraction, multiple_of)
    names = list(importance)
    score = torch.cat([importance[n].double() for n in names])  # (U,) all units of all sites
    site = torch.cat([torch.full((len(importance[n]),), i) for i, n in enumerate(names)])  # (U,) which site's
    price = torch.tensor([float(cost[n]) for n in names], dtype=torch.float64)[site]  # (U,)
    protected = torch.zeros(len(score), dtype=torch.bool)  # (U,) the best unit of each site
    start = 0
    for name in names:
        protected[start + int(importance[name].argmax())] = True
        start += len(importance[name])
    order = score.masked_fill(protected, float("inf")).sort(stable=True).indices[: int((~protected).sum())]
    removed = price[order].cumsum(0)  # (U - sites,) cost of the first units of the order
    target = fraction * float(price.sum())
    count = int((torch.cat([removed.new_zeros(1), removed]) - target).abs().argmin())
    gone = torch.zeros(len(score), dtype=torch.bool)  # (U,)
    gone[order[:count]] = True
    return _split(gone, importance, multiple_of)


def refuse_unreachable(
    units: Mapping[str, int], cost: Mapping[str, float], fraction: float, multiple_of: int = 1
) -> None:
    """Raise UserError, naming the reachable maximum, where `fraction` of the cost cannot go with one unit (or
    `multiple_of` of them) left a site: a search need not be run to know. units: site -> how many; met to the nearest
    unit, as `unified` does."""
    total = sum(cost[name] * count for name, count in units.items())
    reachable = sum(cost[name] * (count - min(count, multiple_of)) for name, count in units.items())
    if reachable < fraction * total - max(cost[name] for name in units):
        left = "one unit" if multiple_of == 1 else f"multiple_of={multiple_of} units"
        raise UserError(
            f"sparsity {fraction:.4g} cannot be reached with {left} left in each of {len(units)} sites: at most "
            f"{reachable / total:.4f}."
        )


def _split(gone: Tensor, importance: Mapping[str, Tensor], multiple_of: int) -> Kept:
    kept: Kept = {}
    for (name, score), away in zip(importance.items(), gone.split([len(s) for s in importance.values()]), strict=True):
        count = _rounded(int((~away).sum()), len(score), multiple_of)
        stays = (~away).nonzero().flatten()
        kept[name] = stays if len(stays) == count else _best(score, count)
    return kept


def _rounded(count: float, units: int, multiple_of: int) -> int:
    """The nearest multiple, between one unit and all of them."""
    rounded = round(count / multiple_of) * multiple_of
    return max(1, min(units, rounded if rounded else multiple_of))


def _best(score: Tensor, count: int) -> Tensor:
    return score.sort(descending=True, stable=True).indices[:count].sort().values
