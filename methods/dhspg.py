"""DHSPG (Chen et al. 2023, OTOv2, arXiv 2303.06862): penalised units are projected to exact zero in half spaces.

x: the rows that make a unit, d: the direction in which the optimiser moves them, r its rate, x^ where it leaves them
    in step P  the K units of the largest  cos(x, d) / |.| + (1 / (mean size + 1e-6)) / |.|  are penalised from now on
    penalised  x^ <- x^ - r l x / (|x| + 1e-8),   l = lambda; and from step W on, where <x, d> < 0,
               l = clip(amplify low, lambda, lambda most),  low = -<x, d> / |x|,  high = -|d|^2 |x| / <x, d>,
               and (low + high) / 2 where that is not below high
    in step H and later  x^ <- 0  where <x^, x> < epsilon |x|^2;  what is 0 stays 0
until the target share of units is 0. Then the smallest units are cut: zeros first, as many as the target says.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

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

TINY = 1e-8
MOST_SHARE = 0.999


class DhspgOptions(PruneOptions, MomentumOptions):
    """The training. The published defaults with AdamW: lambda 1e-2, amplify 20, most 1000; with SGD: 1e-3, 2, 10."""

    steps: int = 150
    lr: float = 3e-4
    batch_size: int = 128
    strength: float = Field(1e-2, ge=0, description="lambda of the penalty on a unit's norm")
    amplify: float = Field(20.0, ge=1, description="how far above its lower bound lambda is set")
    most: float = Field(1000.0, ge=1, description="the largest lambda, as a multiple of strength")
    epsilon: float = Field(0.0, ge=0, lt=1, description="how narrow the half space is")
    tolerance: float = Field(0.05, ge=0, lt=1, description="share of the units penalised beyond the target")
    partition: float = Field(0.1, ge=0, le=1, description="part of the steps before units are chosen")
    warm: float = Field(0.3, ge=0, le=1, description="part of the steps before lambda is adjusted")
    project: float = Field(0.5, ge=0, le=1, description="part of the steps before units are projected to zero")
    multiple_of: int = Field(1, ge=1, description="round kept widths to a multiple of this (8 suits GPU kernels)")

    def at(self, part: float) -> int:
        """A part of the steps as a step, counted from 1."""
        return max(1, round(part * self.steps))


@method(
    "dhspg",
    title="DHSPG: penalised units projected to zero in half spaces, cut, not finetuned",
    role="pruner",
    patterns=("structured",),
    uses_seed=True,
    paper="https://arxiv.org/abs/2303.06862",
)
class Dhspg(WholeHeads, Method):
    """Whole heads (where a layer has them) and neurons, the same fraction of every site."""

    Options = DhspgOptions

    def check(self, structure: Structure) -> None:
        refuse_units(self.units(structure), self.options.fraction, self.options.multiple_of)

    def apply(self, job: Job) -> None:
        options: DhspgOptions = self.options
        self.check(job.changes.structure)
        structure = self.units(job.changes.structure)
        penalty = HalfSpaces(job.model.net, structure, options)
        job.train("dhspg", options, [penalty], options.objective(job))
        sizes = {name: rows.read().norm(dim=1).cpu() for name, rows in penalty.rows.items()}
        zeros = sum(int((size == 0).sum()) for size in sizes.values())
        job.changes.state.log["dhspg"] |= {"zero_units": zeros, "units": sum(map(len, sizes.values()))}
        job.changes.cut(allocation.uniform(sizes, options.fraction, options.multiple_of), structure)


def least_needed(rows: Mapping[str, Tensor], directions: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Site -> bool (units,), the units that are penalised: the share of all whose moving along d costs least of what
    they are, and that are small."""
    cosine = torch.cat([torch.cosine_similarity(-x, -directions[name]) for name, x in rows.items()])
    size = torch.cat([x.norm(dim=1) / x.shape[1] for x in rows.values()])
    halves = (nn.functional.normalize(half, dim=0) for half in (cosine, 1 / (size + 1e-6)))
    score = sum(half / 2 for half in halves)
    assert isinstance(score, Tensor)
    chosen = torch.zeros(len(score), dtype=torch.bool, device=score.device)
    chosen[torch.topk(score, int(len(score) * min(share, MOST_SHARE))).indices] = True
    return dict(zip(rows, chosen.split([len(x) for x in rows.values()]), strict=True))


class HalfSpaces(Hook):
    """The penalty and the projection, after the optimiser's step. penalised: site -> bool (units,)."""

    def __init__(self, net: nn.Module, structure: Structure, options: DhspgOptions) -> None:
        self.net, self.structure, self.options = net, structure, options
        self.rows = {site.name: UnitRows(net, site) for site in structure.sites}
        self.penalised: dict[str, Tensor] = {}
        self.optimiser: torch.optim.Optimizer | None = None
        self._moved: dict[str, Moved] = {}

    def bound(self, optimiser: torch.optim.Optimizer) -> None:
        self.optimiser = optimiser

    def after_backward(self, step: int) -> None:
        assert self.optimiser is not None
        self._moved = about_to_move(self.net, self.structure, self.optimiser)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        number, options, moved = step + 1, self.options, self._moved
        before = {name: one.before for name, one in moved.items()}
        directions = {name: one.direction() for name, one in moved.items()}
        if number >= options.at(options.partition) and not self.penalised:
            self.penalised = least_needed(before, directions, options.fraction + options.tolerance)
        reached = self.zero_share(before) >= options.fraction
        for name, rows in self.rows.items():
            x, new = before[name], rows.read().clone()
            if self.penalised and not reached:
                self._penalise(number, new, x, directions[name], self.penalised[name], self._rate(moved[name]))
            new[x.norm(dim=1) == 0] = 0.0
            rows.write(new)
        self._moved = {}

    @staticmethod
    def _rate(moved: Moved) -> float:
        return moved.rates[0][0]

    @staticmethod
    def zero_share(rows: Mapping[str, Tensor]) -> float:
        """The share of all units that are 0."""
        sizes = torch.cat([x.norm(dim=1) for x in rows.values()])
        return float((sizes == 0).double().mean())

    def _penalise(self, number: int, new: Tensor, x: Tensor, d: Tensor, chosen: Tensor, rate: float) -> None:
        """Move the chosen rows of `new` in place."""
        options, size = self.options, x.norm(dim=1)
        strength = torch.full_like(size, options.strength)
        if number >= options.at(options.warm):
            strength = self._adjusted(strength, x, d, chosen)
        pull = torch.where(size[:, None] > 0, x / (size + TINY)[:, None], torch.zeros_like(x))
        new[chosen] -= rate * strength[chosen, None] * pull[chosen]
        if number >= max(options.at(options.project), options.at(options.warm)):
            new[chosen & ((new * x).sum(1) < options.epsilon * size.square())] = 0.0

    def _adjusted(self, strength: Tensor, x: Tensor, d: Tensor, chosen: Tensor) -> Tensor:
        options, inner, size = self.options, (x * d).sum(1), x.norm(dim=1)
        against = chosen & (inner < 0)  # the optimiser makes them larger
        low, high = -inner / size, -d.square().sum(1) * size / inner
        new = (options.amplify * low).clamp(options.strength, options.strength * options.most)
        return torch.where(against, torch.where(new >= high, (high + low) / 2, new), strength)

    def state(self) -> dict[str, Tensor]:
        return {f"penalised.{name}": flags for name, flags in self.penalised.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        device = {name: rows.parts[0][0].device for name, rows in self.rows.items()}
        self.penalised = {(name := key.removeprefix("penalised.")): v.to(device[name]) for key, v in state.items()}
