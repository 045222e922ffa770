"""Group sparsity by a proximal optimiser (Upadhyay et al. 2023, arXiv 2308.12114, "Less is More"; step after ProxSSI).

    after every step of AdamW, for each group x of n entries, l = lr * lambda * sqrt(n):
    x <- argmin_x sum_i d_i (x_i - p_i)^2 / 2 + l |x|        p: after the step; d = sqrt(v) + 1e-6, v: Adam's; or d = 1
    which is 0 where |d p| <= l, else p d t / (d t + l) with the root t = |x| of sum_i (p_i d_i / (d_i t + l))^2 = 1

The published groups are input channels, whose zeros remove nothing while the layer before still makes them; here a
group is a unit of the structure (the rows that make it, biases with them), so that a zero group can be cut. The
published code has no target: lambda decides. Here the units with the smallest norm are cut after the last step, to
sparsity= exactly.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from vlbench.job import Job
from vlbench.method import Method, method
from vlbench.options import PruneOptions
from vlbench.pruning.allocation import refuse_unreachable, uniform
from vlbench.restoring.momentum import MomentumOptions
from vlbench.structure import Site, Structure
from vlbench.training.loop import Hook

EPSILON = 1e-6  # added to the root of Adam's second moment
STILL = 1e30  # a second moment at which the step moves nothing
NEWTON = 50  # iterations at most


class GroupLassoOptions(PruneOptions, MomentumOptions):
    """The training."""

    steps: int = 150
    lr: float = 3e-4
    batch_size: int = 128
    decay: Literal["cosine", "constant", "poly"] = "constant"
    strength: float = Field(1e-4, ge=0, description="lambda of the penalty on a unit's norm")
    metric: Literal["adam", "euclidean"] = Field(
        "adam", description="what the proximal step measures distances by: Adam's second moment, or plainly"
    )
    multiple_of: int = Field(1, ge=1, description="round kept widths to a multiple of this (8 suits GPU kernels)")

    @model_validator(mode="after")
    def _of_adam(self) -> GroupLassoOptions:
        if self.metric == "adam" and self.optimiser != "adamw":
            raise ValueError(f"metric=adam needs optimiser=adamw: {self.optimiser} has no second moment")
        return self


@method(
    "group_lasso",
    title="Group lasso over units (proximal AdamW), cut, not finetuned",
    role="pruner",
    patterns=("structured",),
    uses_seed=True,
    paper="https://arxiv.org/abs/2308.12114",
)
class GroupLasso(Method):
    """Trains the weights with the penalty, then cuts the same fraction of every site by the units' norms."""

    Options = GroupLassoOptions
    parallel = True

    def check(self, structure: Structure) -> None:
        cost = {s.name: float(s.entries_per_unit) for s in structure.sites}
        units = {s.name: s.units for s in structure.sites}
        refuse_unreachable(units, cost, self.options.fraction, self.options.multiple_of)

    def apply(self, job: Job) -> None:
        options: GroupLassoOptions = self.options
        structure, net = job.changes.structure, job.model.net
        self.check(structure)
        job.train("group_lasso", options, [Proximal(net, structure, options)], options.objective(job))
        norms = {site.name: gathered(net, site).norm(dim=1).cpu() for site in structure.sites}
        zeros = sum(int((norm == 0).sum()) for norm in norms.values())
        job.changes.state.log["group_lasso"] |= {"zero_units": zeros, "units": sum(map(len, norms.values()))}
        job.changes.cut(uniform(norms, options.fraction, options.multiple_of), structure)


class Proximal(Hook):
    """The step above, after the optimiser's. It has no state of its own."""

    def __init__(self, net: nn.Module, structure: Structure, options: GroupLassoOptions) -> None:
        self.net, self.structure, self.options = net, structure, options
        self.optimiser: torch.optim.Optimizer | None = None

    def bound(self, optimiser: torch.optim.Optimizer) -> None:
        self.optimiser = optimiser

    def after_step(self, step: int) -> None:
        assert self.optimiser is not None
        weight = self.options.lr_at(step) * self.options.strength
        with torch.no_grad():
            for site in self.structure.sites:
                groups = gathered(self.net, site)
                metric = self._metric(site) if self.options.metric == "adam" else torch.ones_like(groups)
                scatter(self.net, site, proximal(groups, metric, weight * groups.shape[1] ** 0.5))

    def _metric(self, site: Site) -> Tensor:
        """(units, entries) of the parameters that have had a gradient; STILL keeps the others where they are."""
        assert self.optimiser is not None
        state: Any = self.optimiser.state
        parts = []
        for parameter, index in _owned(self.net, site):
            square = state[parameter].get("exp_avg_sq") if parameter in state else None
            square = torch.full_like(parameter, STILL) if square is None else square
            parts.append(square[index].flatten(1))
        return torch.cat(parts, 1).sqrt() + EPSILON


def _owned(net: nn.Module, site: Site) -> list[tuple[nn.Parameter, Tensor]]:
    """The parameters that make a site's units, weights and biases, with the rows (units, k) of each."""
    parts = [(net.get_parameter(part.param), part.index) for part in site.slices if part.gated]
    return [(parameter, index.to(parameter.device)) for parameter, index in parts]


def gathered(net: nn.Module, site: Site) -> Tensor:
    """(units, entries): a row a unit."""
    return torch.cat([parameter.detach()[index].flatten(1) for parameter, index in _owned(net, site)], 1)


def scatter(net: nn.Module, site: Site, groups: Tensor) -> None:
    """Write back what gathered() gave."""
    first = 0
    for parameter, index in _owned(net, site):
        shape = parameter[index].shape
        size = shape[1:].numel()
        parameter[index] = groups[:, first : first + size].reshape(shape).to(parameter.dtype)
        first += size


def proximal(p: Tensor, d: Tensor, threshold: float) -> Tensor:
    """(groups, entries) points and positive metric -> the minimisers.

    The root is found by Newton's method on 1 / |.| - 1, which is nearly linear in t, kept between 0 and |p|.
    """
    if threshold == 0:
        return p
    inverse = threshold / d  # l / d_i
    norm = (p / inverse).norm(dim=1, keepdim=True)  # |d p| / l
    alive = norm > 1
    low, high = torch.zeros_like(norm), p.norm(dim=1, keepdim=True)
    t = torch.where(alive, high * (1 - 1 / norm.clamp(min=1)), high).clamp(min=torch.finfo(p.dtype).tiny)
    for _ in range(NEWTON):
        below = t + inverse
        squares = (p / below).square_()
        value = squares.sum(1, keepdim=True)
        slope = squares.div_(below).sum(1, keepdim=True)
        low, high = torch.where(value > 1, t, low), torch.where(value > 1, high, t)
        # d/dt value^(-1/2) = value^(-3/2) * slope
        after = t + (1 - value.rsqrt()) * value.pow(1.5) / slope
        after = torch.where((after > low) & (after < high), after, (low + high) / 2)
        still = (after - t).abs() <= 5 * torch.finfo(p.dtype).eps * t  # float64: 1e-15
        t = torch.where(alive, after, t)
        if bool(still[alive].all()):
            break
    return torch.where(alive, p * (t / (t + inverse)), torch.zeros_like(p))
