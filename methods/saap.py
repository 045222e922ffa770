"""After SAAP ("Adaptive Pruning for Large Language Models with Structural Importance Awareness", Zheng et al. 2024,
arXiv 2412.15127). No code was published: this is from the paper's formulas, and where it gives none, our reading.

    coarse    I_v(u) = sum over a unit's matrices |sum of W G|
    fine      I_e(u) = the same of sum |W G - W H W / 2|               G: mean gradient, H: mean squared gradient
    fused     I(u) = I_v / (2 s_v^2) + I_e / (2 s_e^2) + log(s_v s_e)   two outputs with noise of their own (Kendall et
              al. 2018), s of a site where that is least for its units together: s_v^2 = mean I_v, s_e^2 = mean I_e
    ratio     of a site: sparsity (1 + span z), z its fluctuation: how far I of its units spreads over parts of the
              samples (deviation / mean), standardised over the sites; what fluctuates more is pruned more. Moved by
              one number until the target is met
    recovery  group-wise: the columns of A are one number a group of inputs (what lets adapters be merged into weights
              that are quantised by groups; nothing is quantised here)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from vlbench.calibration.gradients import gradients
from vlbench.calibration.statistics import Statistics
from vlbench.compression.cut import Kept
from vlbench.job import Job
from vlbench.method import Chain, Method, chain, method
from vlbench.model import Model
from vlbench.options import Calibration, PruneOptions
from vlbench.pruning import allocation
from vlbench.pruning.decisions import refuse_units
from vlbench.pruning.owl import met
from vlbench.pruning.scoring import WholeHeads
from vlbench.restoring.adapters import (
    AdapterOptions,
    alone,
    attach_new,
    drawn,
    merge,
    placed,
    pruned_towers,
    refuse_misplaced,
    restore,
    verify_zeros,
)
from vlbench.restoring.perturb import adapted_layers
from vlbench.structure import Site, Structure
from vlbench.training.hooks import Hook

from .finetune import small_batches
from .llm_pruner import SALIENCE, per_row

MOST = 0.95  # of a site's units, at most


class SaapOptions(PruneOptions):
    """The search. Samples are looked at in parts, over which importances fluctuate."""

    calibration_samples: int = Field(32, ge=2, description="training samples whose gradients are taken")
    parts: int = Field(4, ge=2, description="parts of the samples, over which importances fluctuate")
    span: float = Field(0.2, ge=0, lt=1, description="how far a site's ratio moves for one deviation of fluctuation")
    multiple_of: int = Field(1, ge=1, description="round kept widths to a multiple of this (8 suits GPU kernels)")

    @property
    def looks_at(self) -> Calibration:
        return Calibration("", "", self.calibration_samples)


@method(
    "saap_search",
    title="After SAAP (from the paper): fused Taylor importances, adaptive ratios, cut, not recovered",
    role="pruner",
    patterns=("structured",),
    uses_seed=True,
    paper="https://arxiv.org/abs/2412.15127",
)
class SaapSearch(WholeHeads, Method):
    """Whole heads (where a layer has them) and neurons, more of sites whose importances are less stable."""

    Options = SaapOptions

    def check(self, structure: Structure) -> None:
        refuse_units(self.units(structure), self.options.fraction, self.options.multiple_of)

    def apply(self, job: Job) -> None:
        options: SaapOptions = self.options
        self.check(job.changes.structure)
        structure, net = self.units(job.changes.structure), job.model.net.eval()
        batches = job.data.calibration(options.calibration_samples, 1)
        names = list(dict.fromkeys(s.param for site in structure.sites for s in site.slices if len(s.shape) > 1))
        taken = [
            gradients(net, names, [(partial(job.loss, b), 1) for b in part]) for part in parted(batches, options.parts)
        ]
        whole = joined(taken)
        importance = {site.name: fused(*importances(net, site, whole)) for site in structure.sites}
        over = {s.name: fluctuation([fused(*importances(net, s, one)) for one in taken]) for s in structure.sites}
        ratios = adaptive(over, {s.name: s.entries_per_unit * s.units for s in structure.sites}, options)
        job.changes.state.log["saap_search"] = {"ratios": {name: round(r, 6) for name, r in ratios.items()}}
        costs = {site.name: float(site.entries_per_unit) for site in structure.sites}
        job.changes.cut(kept(importance, ratios, costs, options.multiple_of), structure)


def parted(batches: Sequence[Any], parts: int) -> list[list[Any]]:
    """Equal parts of the samples (to one), as many as there are samples at most."""
    count = min(parts, len(batches))
    return [list(batches[len(batches) * i // count : len(batches) * (i + 1) // count]) for i in range(count)]


def joined(parts: Sequence[Mapping[str, Statistics]]) -> dict[str, Statistics]:
    """The means over all samples, of means over parts of them."""
    return {name: _mean([part[name] for part in parts]) for name in parts[0]}


def _mean(parts: Sequence[Statistics]) -> Statistics:
    total = sum(one.samples for one in parts)

    def over(which: str) -> Tensor:
        return torch.stack([getattr(one, which) * (one.samples / total) for one in parts]).sum(0)

    return Statistics(torch.zeros(1), total, None, over("gradient"), over("gradient_square"))


def importances(net: nn.Module, site: Site, seen: Mapping[str, Statistics]) -> tuple[Tensor, Tensor]:
    """(units,) coarse and fine importance of a site's units."""
    coarse, fine = torch.zeros(site.units, dtype=torch.float64), torch.zeros(site.units, dtype=torch.float64)
    for part in (s for s in site.slices if len(s.shape) > 1):
        weight, taken = net.get_parameter(part.param).detach().double(), seen[part.param]
        assert taken.gradient is not None
        assert taken.gradient_square is not None
        g, h = taken.gradient.double(), taken.gradient_square.double()
        for total, kind in ((coarse, "vectorize"), (fine, "param_mix")):
            rows = per_row(SALIENCE[kind](weight, g, h), part.dim, signed=kind == "vectorize")
            total += rows.cpu()[part.index].sum(1)
    return coarse, fine


def fused(coarse: Tensor, fine: Tensor) -> Tensor:
    """(units,) both importances, weighed by the noise of each."""
    noise = [one.mean().clamp(min=1e-30) for one in (coarse, fine)]  # s^2
    return coarse / (2 * noise[0]) + fine / (2 * noise[1]) + torch.log(noise[0] * noise[1]) / 2


def fluctuation(parts: Sequence[Tensor]) -> float:
    """How far the units' importances spread over parts of the samples, each part's mean taken out: the mean over the
    units of the deviation by the mean."""
    among = torch.stack([one - one.mean() + 1 for one in parts])  # 1 is the mean of what fused() weighs
    return float((among.std(0) / among.mean(0).abs().clamp(min=1e-12)).mean())


def adaptive(over: Mapping[str, float], sizes: Mapping[str, int], options: SaapOptions) -> dict[str, float]:
    """Site -> the fraction that goes, which is the target on the whole."""
    values = torch.tensor(list(over.values()), dtype=torch.float64)
    deviation = values.std() if len(values) > 1 else torch.zeros(())
    z = (values - values.mean()) / deviation if float(deviation) > 0 else torch.zeros_like(values)
    ratios = (options.fraction * (1 + options.span * z)).clamp(0, MOST)
    return met(dict(zip(over, ratios.tolist(), strict=True)), sizes, options.fraction)


def kept(
    importance: Mapping[str, Tensor], ratios: Mapping[str, float], cost: Mapping[str, float], multiple_of: int
) -> Kept:
    """The most important units of every site, at its ratio. cost: entries of one unit. What rounding a site's units
    adds or takes away is made up for by the sites after it, the ones with the smallest units last."""
    keep: Kept = {}
    owed = 0.0  # entries that should be gone by now, and are not
    for name in sorted(importance, key=lambda name: -cost[name]):
        whole = len(importance[name]) * cost[name]
        ratio = min(1.0, max(0.0, ratios[name] + owed / whole))
        keep |= allocation.uniform({name: importance[name]}, ratio, multiple_of)
        owed += ratios[name] * whole - (len(importance[name]) - len(keep[name])) * cost[name]
    return keep


class GroupwiseOptions(AdapterOptions):
    """Adapters whose A has one column a group of inputs."""

    group_size: int = Field(8, ge=1, description="inputs that share a column of A")


class Grouped(Hook):
    """Keeps the columns of A alike within groups of inputs: they begin so, and get one gradient."""

    def __init__(self, net: nn.Module, size: int) -> None:
        self.layers, self.size = adapted_layers(net), size
        with torch.no_grad():
            for layer in self.layers:
                layer.a.copy_(self._shared(layer.a, mean=True))

    def _shared(self, a: Tensor, *, mean: bool) -> Tensor:
        parts = a.split(self.size, 1)
        sums = [p.mean(1, keepdim=True) if mean else p.sum(1, keepdim=True) for p in parts]
        return torch.cat([one.expand_as(p) for one, p in zip(sums, parts, strict=True)], 1)

    def after_backward(self, step: int) -> None:
        for layer in self.layers:
            if layer.a.grad is not None:
                layer.a.grad = self._shared(layer.a.grad, mean=False)


@method(
    "groupwise",
    title="Group-wise adapters (after SAAP, from the paper), merged, zeros kept",
    role="restorer",
    uses_seed=True,
    paper="https://arxiv.org/abs/2412.15127",
)
class Groupwise(Method):
    """Trains A and B alone, A with one column a group of inputs; merging keeps every zero of a mask."""

    Options = GroupwiseOptions
    parallel = True
    recipes: ClassVar[dict[str, Any]] = {"mini": small_batches}

    def check_model(self, model: Model) -> None:
        refuse_misplaced(model, self.options)

    def apply(self, job: Job) -> None:
        net, options = job.model.net, self.options
        ranks = placed(job.model, options, pruned_towers(job.changes.structure, job.changes.state))
        with alone(net):
            with drawn(job.here.seed):
                attach_new(net, ranks, options, job.changes.state.masks, recompute=False)
            restore(job, "groupwise", options, lambda net: [Grouped(net, options.group_size)])
        merge(net, ranks)
        verify_zeros(net, job.changes.state)


@chain(
    "saap",
    title="After SAAP (from the paper): adaptive structured pruning, then group-wise recovery",
    links=("saap_search", "groupwise"),
    paper="https://arxiv.org/abs/2412.15127",
)
class Saap(Chain):
    """Fused importances and adaptive ratios, then group-wise adapters."""

    recipes: ClassVar[dict[str, Any]] = {"mini": {}}
