"""UPop: unified and progressive pruning (Shi et al., ICML 2023, arXiv 2301.13741).

Search: gates on all units, trained weights. The gradient of the loss with respect to a gate, summed over the steps, is
the unit's score (large: a smaller gate lowers the loss: prune). Scores are standardised over all attention units and
over all feed-forward units, ranked together (unified), and the selected units' gates fall to zero along a sine
(progressive). At the end gates are exactly 0 or 1 and the zeros are cut out; the rest is finetuned.

With t of T steps done, target p, and g_s = dL/dgate of step s: score = z(sum_s g_s); p_t = p sin(pi t / 2T) of the cost
goes, by the highest scores of the whole model; gate = 1 - p_t / p where a unit is selected, 1 elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from vlbench.compression.gates import Gates
from vlbench.job import Job
from vlbench.method import Chain, Method, chain, method
from vlbench.pruning.allocation import refuse_unreachable, unified
from vlbench.pruning.scoring import unit_importance
from vlbench.pruning.search import GateSearch, SearchOptions, code_budget, standardise
from vlbench.pruning.unit_cost import unit_macs
from vlbench.restoring.momentum import MomentumOptions
from vlbench.structure import Structure

from . import _upop_recipes as recipes

__all__ = ["Search", "SearchOptions", "UPop", "UPopOptions", "UPopSearch", "code_budget", "standardise", "unified"]

# importance -> what a step adds to a unit's sum, of its gate and the gate's gradient; a high sum is pruned.
EVIDENCE: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "signed": lambda g, gate: g,
    "abs": lambda g, gate: -g.abs(),
    "square": lambda g, gate: -g.square(),  # the diagonal of the empirical Fisher matrix (Theis et al. 2018)
    "taylor": lambda g, gate: gate * g,  # first order: what all the losses seen change by without the unit
    "weight": lambda g, gate: torch.zeros_like(g),
    "random": lambda g, gate: torch.zeros_like(g),
}
# ramp -> p_t / p after t of T steps: sin(pi x / 2) = ((1 - cos(pi x)) / 2)^(1/2) with x = t / T. The published code has
# pi t / T, which differs from pi (t / T) in the last bit at 3,346 of T = 18,470 steps. Results that are committed
# were made with the latter: recipe=upop-code takes the former.
RAMP: Mapping[str, Callable[[int, int], float]] = {
    "sine": lambda t, T: ((1 - math.cos(math.pi * (t / T))) / 2) ** 0.5,
    "sine-code": lambda t, T: ((1 - math.cos(math.pi * t / T)) / 2) ** 0.5,
    "linear": lambda t, T: t / T,
}


class Search(GateSearch):
    """Algorithm 1 of the paper with its ablations."""

    def evidence(self, gradient: Tensor, gate: Tensor) -> Tensor:
        return EVIDENCE[self.options.importance](gradient, gate)

    def score(self) -> dict[str, Tensor]:
        importance = self.options.importance
        if importance == "taylor":  # Molchanov et al. 2017 (arXiv 1611.06440): the absolute value of the sum
            return {name: -total.abs() for name, total in self.total.items()}
        if importance == "weight":
            return self._weights()
        if importance == "random":
            draws = torch.Generator().manual_seed(self.seed)
            return {n: torch.rand(len(v), generator=draws, dtype=torch.float64) for n, v in self.total.items()}
        return self.total

    def _weights(self) -> dict[str, Tensor]:
        """Minus the root mean square of what a unit owns, now: sites of other sizes are comparable."""
        net = self.gates.net
        norms = {s: unit_importance(s, lambda name: net.get_parameter(name).detach()) for s in self.structure.sites}
        return {s.name: -norm.double() / s.entries_per_unit**0.5 for s, norm in norms.items()}

    def ramp(self, done: int, steps: int) -> float:
        return RAMP[self.options.ramp](done, steps)


class UPopOptions(SearchOptions, MomentumOptions):
    """The search, and what it trains on."""


@method(
    "upop_search",
    title="UPop's unified progressive search, cut, not finetuned",
    role="pruner",
    patterns=("structured",),
    uses_seed=True,
    paper="https://arxiv.org/abs/2301.13741",
)
class UPopSearch(Method):
    """The first half of UPop; `upop` is this and finetune."""

    Options = UPopOptions
    parallel = True
    recipes = {"mini": recipes.mini}  # noqa: RUF012

    @classmethod
    def version_of(cls, options: Mapping[str, Any]) -> int:
        """2: what a query meets is counted a sequence, so that a unit of NLVR2's two images is not priced as one of
        an image of twice the length."""
        return 2 if options.get("unit_cost") == "macs" else cls.version

    def check(self, structure: Structure) -> None:
        options: SearchOptions = self.options
        structure = options.units_of(structure)
        if options.unit_cost != "macs":  # these are measured first
            self._refuse(structure, self._cost(structure))

    def apply(self, job: Job) -> None:
        options: UPopOptions = self.options
        structure = options.units_of(job.changes.structure)
        cost = self._macs(job, structure) if options.unit_cost == "macs" else self._cost(structure)
        self._refuse(structure, cost)
        loss = options.objective(job)
        gates = Gates(job.model.net, structure)
        search = Search(gates, structure, options, cost, seed=job.here.seed)
        job.train("upop_search", options, [search], loss)
        gates.remove()
        job.changes.state.log["upop_search"] |= {"updates": search.updates, "selected": search.selected}
        job.changes.cut(search.kept, structure, kept_scale=options.softmax_scale == "kept")

    def _refuse(self, structure: Structure, cost: dict[str, float]) -> None:
        options: SearchOptions = self.options
        units = {s.name: s.units for s in structure.sites}
        refuse_unreachable(units, cost, options.fraction, options.multiple_of)

    def _cost(self, structure: Structure) -> dict[str, float]:
        """Site -> cost of one unit."""
        options: SearchOptions = self.options
        if options.unit_cost == "params":
            return {s.name: float(s.entries_per_unit) for s in structure.sites}
        attention, ffn = (float(x) for x in options.unit_cost.split(":"))
        return {s.name: attention if s.kind == "attention" else ffn for s in structure.sites}

    def _macs(self, job: Job, structure: Structure) -> dict[str, float]:
        sample = job.data.calibration(1)[0]
        return unit_macs(job.model.net, structure, lambda: job.loss(sample))


@chain(
    "upop",
    title="UPop (ICML 2023)",
    links=("upop_search", "finetune"),
    paper="https://arxiv.org/abs/2301.13741",
)
class UPop(Chain):
    """Unified and progressive search, then finetuning with as many steps."""

    recipes = {"mini": {}, "paper": recipes.paper, "upop-code": recipes.code}  # noqa: RUF012
