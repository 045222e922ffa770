"""HESSO (Chen et al. 2024, arXiv 2409.09085): units fall out of the training in steps, and shrink to zero.

x: the rows that make a unit (weights and biases), d: the direction in which the optimiser moves them
    scores   |x|,  |x| / entries,  cos(x, d) + 1,  |<x, d>|,  <x, d>^2 / 2;  each times 0.2 / its norm over all units
    in step  start + 1 + p T of period p the units of the least sum of scores become redundant; in step t of the period
             (from 0, of T) the optimiser moves all, and redundant rows are multiplied by (T - t - 1) / (T - t)
    then     they are 0, and stay so

This is the optimiser of Only-Train-Once, of which LoRAShear's LHSPG is the form for adapters (`lhspg`). budget=groups
counts units as the published code does, where a unit that was redundant before and is again among the least can push
out another; budget=parameters meets the target by entries, as everywhere here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vlbench.compression.cut import Kept
from vlbench.errors import UserError
from vlbench.job import Job
from vlbench.method import Method, method
from vlbench.options import PruneOptions
from vlbench.pruning import allocation
from vlbench.pruning.decisions import refuse_units
from vlbench.pruning.scoring import WholeHeads
from vlbench.pruning.unit_rows import Moved, UnitRows, about_to_move
from vlbench.restoring.momentum import MomentumOptions
from vlbench.structure import Structure
from vlbench.training.hooks import Hook

TINY, SHARE = 1e-8, 0.2


class HessoOptions(PruneOptions, MomentumOptions):
    """The training, during which units fall out."""

    steps: int = 150
    lr: float = 3e-4
    batch_size: int = 128
    learning: float = Field(0.2, ge=0, lt=1, description="part of the steps before the first units fall out")
    settling: float = Field(0.2, ge=0, lt=1, description="part of the steps after the last ones are zero")
    periods: int = Field(1, ge=1, description="times that units are chosen")
    budget: Literal["parameters", "groups"] = Field(
        "parameters", description="what sparsity= is a fraction of: entries, or units (as published)"
    )
    multiple_of: int = Field(1, ge=1, description="round kept widths to a multiple of this (8 suits GPU kernels)")

    @property
    def start(self) -> int:
        return round(self.learning * self.steps)

    @property
    def duration(self) -> int:
        """Steps of a period."""
        return (self.steps - self.start - round(self.settling * self.steps)) // self.periods


@method(
    "hesso",
    title="HESSO: units fall out of the training, cut, not finetuned",
    role="pruner",
    patterns=("structured",),
    uses_seed=True,
    paper="https://arxiv.org/abs/2409.09085",
)
class Hesso(WholeHeads, Method):
    """Whole heads (where a layer has them) and neurons, by one ranking over the model."""

    Options = HessoOptions

    def check(self, structure: Structure) -> None:
        options: HessoOptions = self.options
        if options.duration < 1:
            raise UserError(f"periods={options.periods} are more than steps={options.steps} hold: give more steps.")
        refuse_units(self.units(structure), options.fraction, options.multiple_of)

    def apply(self, job: Job) -> None:
        options: HessoOptions = self.options
        self.check(job.changes.structure)
        structure = self.units(job.changes.structure)
        falling = FallingOut(job.model.net, structure, options)
        job.train("hesso", options, [falling], options.objective(job))
        keep = falling.kept()
        job.changes.state.log["hesso"] |= {"kept": {name: len(kept) for name, kept in keep.items()}}
        job.changes.cut(keep, structure)


def scores(rows: Mapping[str, Tensor], directions: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Site -> criterion -> (units,), scaled, and "overall", their sum. rows, directions: site -> (units, entries)."""
    criteria = {name: _criteria(x.double(), directions[name].double()) for name, x in rows.items()}
    for what in next(iter(criteria.values())):
        norm = (sum(one[what].square().sum() for one in criteria.values()) + TINY) ** 0.5 + TINY
        for one in criteria.values():
            one[what] = one[what] * (SHARE / norm)
    return {name: {**one, "overall": torch.stack(list(one.values())).sum(0)} for name, one in criteria.items()}


def _criteria(x: Tensor, direction: Tensor) -> dict[str, Tensor]:
    size, inner = x.norm(dim=1), (x * direction).sum(1)
    return {
        "magnitude": size,
        "avg_magnitude": size / (x.shape[1] + 1e-6),
        "cosine_similarity": inner / (size + TINY) / (direction.norm(dim=1) + TINY) + 1,
        "taylor_first_order": inner.abs(),
        "taylor_second_order": inner.square() / 2,
    }


class FallingOut(Hook):
    """Chooses redundant units, shrinks them and keeps them zero. redundant, gone: site -> bool (units,)."""

    def __init__(self, net: nn.Module, structure: Structure, options: HessoOptions) -> None:
        self.net, self.structure, self.options = net, structure, options
        self.rows = {site.name: UnitRows(net, site) for site in structure.sites}
        self.redundant = {site.name: torch.zeros(site.units, dtype=torch.bool) for site in structure.sites}
        self.gone = {site.name: torch.zeros(site.units, dtype=torch.bool) for site in structure.sites}
        self.optimiser: torch.optim.Optimizer | None = None
        self._moved: dict[str, Moved] = {}

    def bound(self, optimiser: torch.optim.Optimizer) -> None:
        self.optimiser = optimiser

    def _period(self, step: int) -> int | None:
        """The period whose units are chosen in this step (counted from 1)."""
        period, rest = divmod(step - self.options.start - 1, self.options.duration)
        return period if rest == 0 and 0 <= period < self.options.periods else None

    def after_backward(self, step: int) -> None:
        if self._period(step + 1) is not None:
            assert self.optimiser is not None
            self._moved = about_to_move(self.net, self.structure, self.optimiser)

    def after_step(self, step: int) -> None:
        number, options = step + 1, self.options
        if (period := self._period(number)) is not None:
            self._commit()
            before = {name: moved.before for name, moved in self._moved.items()}
            criteria = scores(before, {name: moved.direction() for name, moved in self._moved.items()})
            self._choose({name: one["overall"].cpu() for name, one in criteria.items()}, period)
            self._moved = {}
        place = (number - options.start) % options.duration
        factor = (options.duration - place - 1) / (options.duration - place)
        for name, rows in self.rows.items():
            if self.redundant[name].any():
                rows.write(rows.read() * factor, self.redundant[name])
            if self.gone[name].any():
                rows.write(torch.zeros_like(rows.read()), self.gone[name])
        if number >= options.start and place == options.duration - 1:
            self._commit()

    def _commit(self) -> None:
        for name, redundant in self.redundant.items():
            self.gone[name] |= redundant
            self.redundant[name] = torch.zeros_like(redundant)

    def _choose(self, overall: Mapping[str, Tensor], period: int) -> None:
        options = self.options
        if options.budget == "groups":
            self._choose_groups(overall, period)
            return
        least = {n: s.masked_fill(self.gone[n], -torch.inf) for n, s in overall.items()}
        cost = {site.name: float(site.entries_per_unit) for site in self.structure.sites}
        share = options.fraction * (period + 1) / options.periods
        for name, kept in allocation.unified(least, cost, share, options.multiple_of).items():
            away = torch.ones(len(least[name]), dtype=torch.bool)
            away[kept] = False
            self.redundant[name] = away & ~self.gone[name]

    def _choose_groups(self, overall: Mapping[str, Tensor], period: int) -> None:
        options, sizes = self.options, [len(score) for score in overall.values()]
        total = int(options.fraction * sum(sizes))
        each = total // options.periods
        count = total - each * (options.periods - 1) if period == options.periods - 1 else each
        gone = torch.cat([self.gone[name] for name in overall])
        least = torch.topk(-torch.cat(list(overall.values())), int(gone.sum()) + count).indices
        new = sorted(set(least.tolist()) - set(gone.nonzero().flatten().tolist()))[:count]
        chosen = torch.zeros_like(gone)
        chosen[new] = True
        for name, part in zip(overall, chosen.split(sizes), strict=True):
            left = int((~self.gone[name] & ~part).sum())
            if left < 1:  # one unit of a site stays: the last of those that were chosen
                part[part.nonzero().flatten()[-1]] = False
            self.redundant[name] = part

    def kept(self) -> Kept:
        """The units that have not fallen out."""
        return {name: (~(gone | self.redundant[name])).nonzero().flatten() for name, gone in self.gone.items()}

    def state(self) -> dict[str, Tensor]:
        return {
            f"{kind}.{name}": flags
            for kind, by_site in (("gone", self.gone), ("redundant", self.redundant))
            for name, flags in by_site.items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        for name in self.gone:
            self.gone[name], self.redundant[name] = state[f"gone.{name}"].cpu(), state[f"redundant.{name}"].cpu()
