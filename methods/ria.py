"""RIA (Zhang et al. 2024, ICLR, "Plug-and-play"): a weight's share of its row and of its column, and its input's norm.

score_ij = (|W_ij| / sum_k |W_kj| + |W_ij| / sum_k |W_ik|) * ||X_j||_2 ^ a

reallocate= deals columns out before an n:m pattern is made, so that its groups of m hold columns of all ranks: sorted
by the sum of their scores, or by what unstructured pruning would leave of them, one strip of columns a place in the
group, every second strip backwards. A matrix's columns are dealt by what makes them, which is free for neurons and
inside heads, and on the residual stream would change the model: those stay in their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from vlbench.calibration.blocks import block_statistics
from vlbench.calibration.statistics import Statistics
from vlbench.job import Job
from vlbench.method import method
from vlbench.options import later
from vlbench.pruning.decisions import weight_of
from vlbench.pruning.scoring import CalibratedOptions, ScorePruner
from vlbench.structure import Block, Site, Slice

FREE = ("neuron", "value dim")  # units whose order inside their layer is free
Ranking = Literal["off", "sum", "retained_degree_unstructured", "retained_degree_per_outneuron"]


class RiaOptions(CalibratedOptions):
    """Compared within a row; the published code compares whole matrices unless told otherwise (recipe=ria-code)."""

    power: float = Field(0.5, ge=0, description="a: how much the norm of an input counts; 0: not at all")
    reallocate: Ranking = later(
        "off",
        description="n:m: deal neurons and dimensions of heads out over the groups of m, by the sum of their scores or "
        "by what unstructured pruning leaves of them",
    )

    @model_validator(mode="after")
    def _of_patterns(self) -> RiaOptions:
        if self.reallocate != "off" and self.n_m is None:
            raise ValueError(f"reallocate={self.reallocate} is for n:m patterns: give sparsity=2:4, or leave it away")
        return self


@method(
    "ria",
    title="RIA: relative importance and activations",
    role="pruner",
    patterns=("unstructured", "n:m"),
    uses_seed=True,
    paper="https://openreview.net/forum?id=Tr0lPx9woF",
)
class Ria(ScorePruner):
    """Inputs come from seeded training samples, block by block, each block seeing the pruned output of the one before;
    what reallocate= goes by are the dense model's."""

    Options = RiaOptions
    recipes = {"ria-code": {"group": "matrix", "rule": "<=", "propagate": "pruned"}}  # noqa: RUF012

    def apply(self, job: Job) -> None:
        if self.options.reallocate != "off":
            self.check(job.changes.structure)
            self._reallocate(job)
            job.here = replace(job.here, shared=None)  # other cells' inputs are in another order
        super().apply(job)

    def score(self, weight: Tensor, statistics: Statistics | None) -> Tensor:
        assert statistics is not None
        size = weight.abs()
        relative = size / size.sum(0, keepdim=True) + size / size.sum(1, keepdim=True)
        score: Tensor = relative.nan_to_num_(0.0) * statistics.norm.to(weight.dtype) ** self.options.power
        return score

    def _reallocate(self, job: Job) -> None:
        """Put units into the order that an n:m pattern keeps most of: the model computes what it did."""
        options: RiaOptions = self.options
        net, structure = job.model.net.eval(), job.changes.structure
        runs = [partial(job.loss, batch) for batch in job.data.calibration(options.calibration_samples, 1)]
        orders: list[tuple[Site, Tensor]] = []
        for block, statistics in block_statistics(net, structure, runs, propagate="dense"):
            for site, reader in readers(block):
                scores = self.score(weight_of(net, reader.param), statistics[reader.param]).cpu()
                orders.append((site, self.order(scores, reader.index)))
        for site, order in orders:
            job.changes.update(permuted(net, site, order))

    def order(self, scores: Tensor, index: Tensor) -> Tensor:
        """(units,) the unit that each place takes. scores: (out, in); index: (units, k), the columns of a unit."""
        options: RiaOptions = self.options
        assert options.n_m is not None
        return dealt([key[index].sum(1) for key in keys(scores, options.reallocate, options.fraction)], options.n_m[1])


def readers(block: Block) -> list[tuple[Site, Slice]]:
    """Of a block's sites, in units whose order is free: the columns of the matrix that reads the units."""
    matrices = []
    for site in block.sites:
        for free in [v for v in (site, *site.variants) if v.unit in FREE][:1]:
            matrices += [(free, part) for part in free.slices if part.dim == 1 and len(part.shape) == 2]
    return matrices


def keys(scores: Tensor, ranking: str, ratio: float) -> list[Tensor]:
    """What columns are ranked by, (in,) each, the last one first. The threshold of the whole matrix takes one weight
    more than its count, as in the code."""
    if ranking == "sum":
        return [scores.sum(0)]
    if ranking == "retained_degree_unstructured":
        gone = scores <= scores.flatten().sort().values[int(scores.numel() * ratio)]
    else:
        first = scores.sort(dim=1, stable=True).indices[:, : int(scores.shape[1] * ratio)]
        gone = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, first, True)
    return [gone.sum(0), (~gone * scores).sum(0)]


def dealt(ranked_by: Sequence[Tensor], m: int) -> Tensor:
    """Units in m strips of rising rank, one for each place of a group, every second strip backwards. What is over,
    where m does not divide them, stays behind in its order."""
    order = torch.arange(len(ranked_by[0]))
    for key in ranked_by:
        order = order[key[order].sort(stable=True).indices]
    whole = len(order) // m * m
    index = order.clone()
    for place, strip in enumerate(order[:whole].split(whole // m)):
        index[place:whole:m] = strip.flip(0) if place % 2 else strip
    return index


def permuted(net: nn.Module, site: Site, order: Tensor) -> dict[str, Tensor]:
    """Parameter -> its values with the site's units in another order."""
    weights: dict[str, Tensor] = {}
    for part in site.slices:
        old = weights.get(part.param, net.get_parameter(part.param).detach()).clone()
        index = part.index.to(old.device)
        new = old.clone()
        moved, source = new.movedim(part.dim, 0), old.movedim(part.dim, 0)
        moved[index] = source[index[order.to(index.device)]]
        weights[part.param] = new
    return weights
