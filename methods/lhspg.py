"""LoRA half-space pruning: units shrink to zero while adapters learn (LoRAShear, Chen et al. 2023, arXiv 2310.18356).

    1. A and B of adapters beside every prunable matrix are trained; the weights W stand still
    2. saliency of a unit, over the rows it owns (W, and BA = B A without its scaling, which stands for the gradient):
       |W|,  cos(W, BA) + 1,  |<W, BA>|,  <W, BA>^2 / 2;  each divided by its norm over all units, and their mean
    3. the least salient units are redundant: A stands still, B is trained, and in step t of n (from 1) the redundant
       rows of B, W and bias are multiplied by (n - t - 1) / (n - t): they are 0 one step before the last, and stay so
    4. adapters are merged, redundant units cut

The published repository (microsoft/only_train_once) has the saliency and the shrinking; the schedule of LHSPG itself
and how many groups are protected was not released. Its AdamW begins with the first gradient as both moments; here it is
torch's. `protect` leaves the sites alone whose removal costs most of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vlbench.compression.cut import Kept
from vlbench.compression.gates import Gates
from vlbench.errors import UserError
from vlbench.job import Job
from vlbench.method import Chain, Method, chain, method
from vlbench.nn.adapted import Adapted, attach
from vlbench.options import PruneOptions
from vlbench.pruning import allocation
from vlbench.pruning.decisions import refuse_units
from vlbench.pruning.scoring import WholeHeads
from vlbench.restoring.adapters import alone, drawn, merge
from vlbench.restoring.momentum import MomentumOptions
from vlbench.structure import Site, Structure
from vlbench.training.hooks import Hook

TINY = 1e-8


class LhspgOptions(PruneOptions, MomentumOptions):
    """The training of the adapters, during which units shrink."""

    steps: int = 150
    lr: float = 5e-3
    batch_size: int = 128
    weight_decay: float = 0.0
    rank: int = Field(8, ge=1, description="rank of the adapters")
    alpha: float = Field(16.0, gt=0, description="the product of the two factors is scaled by alpha / rank")
    learning: float = Field(0.3, ge=0, lt=1, description="part of the steps before units are chosen")
    protect: float = Field(0.0, ge=0, lt=1, description="share of the sites that stay whole, by the loss without them")
    protect_samples: int = Field(32, ge=1, description="training samples whose loss tells which")
    allocation: Literal["uniform", "global"] = Field(
        "uniform",
        description="uniform: sites lose the same fraction of their units; global: one ranking over the model",
    )
    multiple_of: int = Field(1, ge=1, description="round kept widths to a multiple of this (8 suits GPU kernels)")

    @property
    def warm(self) -> int:
        return min(self.steps - 1, round(self.learning * self.steps))


@method(
    "lhspg",
    title="LHSPG: redundant units shrink to zero while adapters learn",
    role="pruner",
    patterns=("structured",),
    uses_seed=True,
    paper="https://arxiv.org/abs/2310.18356",
)
class Lhspg(WholeHeads, Method):
    """Whole heads (where a layer has them) and neurons, the same fraction of every site or one ranking."""

    Options = LhspgOptions

    def check(self, structure: Structure) -> None:
        refuse_units(self.units(structure), self.options.fraction, self.options.multiple_of)

    def apply(self, job: Job) -> None:
        options: LhspgOptions = self.options
        self.check(job.changes.structure)
        structure, net = self.units(job.changes.structure), job.model.net
        protected = self.protected(job, structure)
        ratio_of_free(structure, protected, options.fraction)
        paths = [name.removesuffix(".weight") for name in structure.matrices]
        with alone(net):
            with drawn(job.here.seed):
                for path in paths:
                    attach_zero(net.get_submodule(path), options.rank, options.alpha)
            shrinking = Shrink(net, structure, options, protected)
            job.train("lhspg", options, [shrinking], options.objective(job))
            merge(net, dict.fromkeys(paths, options.rank))
        log = job.changes.state.log["lhspg"]
        log |= {"protected": sorted(protected), "kept": {name: len(kept) for name, kept in shrinking.keep.items()}}
        job.changes.cut(shrinking.keep, structure)

    def protected(self, job: Job, structure: Structure) -> set[str]:
        """The sites whose removal costs most."""
        options: LhspgOptions = self.options
        count = round(options.protect * len(structure.sites))
        if not count:
            return set()
        net = job.model.net.eval()
        losses = [partial(job.loss, batch) for batch in job.data.calibration(options.protect_samples, 8)]
        gates = Gates(net, structure)
        cost: dict[str, float] = {}
        with torch.no_grad():
            for site in structure.sites:
                gates.set({site.name: torch.zeros(site.units)})
                cost[site.name] = sum(float(loss()) for loss in losses)
                gates.set({site.name: torch.ones(site.units)})
        gates.remove()
        return set(sorted(cost, key=lambda name: -cost[name])[:count])


def ratio_of_free(structure: Structure, protected: set[str], fraction: float) -> float:
    """What sites that are not protected have to lose, so that `fraction` of all goes. Raises UserError where they have
    not as much."""
    size = {site.name: site.entries_per_unit * site.units for site in structure.sites}
    ratio = fraction * sum(size.values()) / max(1, sum(n for name, n in size.items() if name not in protected))
    if ratio >= 1:
        raise UserError(f"sparsity={fraction:g} is more than protect= leaves to prune: lower one of them.")
    return ratio


def attach_zero(layer: nn.Module, rank: int, alpha: float) -> None:
    """An adapter whose product is 0: A as a Linear's weight is drawn, B of zeros."""
    assert isinstance(layer, nn.Linear)
    rows, columns = layer.weight.shape
    wide = torch.promote_types(layer.weight.dtype, torch.float32)
    a = nn.init.kaiming_uniform_(torch.empty(rank, columns, dtype=wide), math.sqrt(5))
    attach(layer, a, torch.zeros(rows, rank, dtype=wide), alpha / rank)


def owned_rows(net: nn.Module, site: Site) -> list[tuple[Any, Tensor]]:
    """(adapted layer, (units, k) its rows) of the projections that make a site's units."""
    rows: dict[str, list[Tensor]] = {}
    for part in site.slices:
        if part.dim == 0 and len(part.shape) > 1:
            rows.setdefault(part.param.removesuffix(".weight"), []).append(part.index)
    layers = [(net.get_submodule(path), torch.cat(index, 1)) for path, index in rows.items()]
    return [(layer, index.to(layer.weight.device)) for layer, index in layers if isinstance(layer, Adapted)]


def saliency(net: nn.Module, site: Site) -> dict[str, Tensor]:
    """Criterion -> (units,)."""
    pairs = [
        (layer.weight.detach()[index].flatten(1), (layer.lora_b.detach() @ layer.lora_a.detach())[index].flatten(1))
        for layer, index in owned_rows(net, site)
    ]
    weight, update = (torch.cat([pair[i].double() for pair in pairs], 1) for i in (0, 1))
    inner = (weight * update).sum(1)
    size = weight.norm(dim=1)
    return {
        "magnitude": size,
        "cosine_similarity": inner / ((size + TINY) * (update.norm(dim=1) + TINY)) + 1,
        "taylor_first_order": inner.abs(),
        "taylor_second_order": inner.square() / 2,
    }


def importance(net: nn.Module, structure: Structure) -> dict[str, Tensor]:
    """Site -> (units,) mean over the criteria, each divided by its norm over all units of the model."""
    criteria = {site.name: saliency(net, site) for site in structure.sites}
    total = {name: torch.zeros_like(one["magnitude"]) for name, one in criteria.items()}
    for what in next(iter(criteria.values())):
        norm = torch.cat([one[what] for one in criteria.values()]).norm() + TINY
        for name, one in criteria.items():
            total[name] += one[what] / norm / len(one)
    return {name: one.cpu() for name, one in total.items()}


class Shrink(Hook):
    """Chooses the redundant units after the adapters have learnt, and shrinks them. `keep`: the units that stay."""

    def __init__(self, net: nn.Module, structure: Structure, options: LhspgOptions, protected: set[str]) -> None:
        self.net, self.structure, self.options, self.protected = net, structure, options, protected
        self.keep: Kept = {}

    def before_step(self, step: int) -> None:
        if step == self.options.warm:
            self.choose()

    def choose(self) -> None:
        scores = importance(self.net, self.structure)
        if self.options.allocation == "uniform":
            free = {name: score for name, score in scores.items() if name not in self.protected}
            whole = {name: torch.arange(len(scores[name])) for name in self.protected}
            ratio = ratio_of_free(self.structure, self.protected, self.options.fraction)
            self.keep = allocation.uniform(free, ratio, self.options.multiple_of) | whole
            return
        scores = {n: torch.full_like(s, torch.inf) if n in self.protected else s for n, s in scores.items()}
        cost = {site.name: float(site.entries_per_unit) for site in self.structure.sites}
        self.keep = allocation.unified(scores, cost, self.options.fraction, self.options.multiple_of)

    def after_backward(self, step: int) -> None:
        if step >= self.options.warm:
            for layer in self.net.modules():
                if isinstance(layer, Adapted):
                    layer.lora_a.grad = None

    def after_step(self, step: int) -> None:
        if step >= self.options.warm:
            length = self.options.steps - self.options.warm
            done = step - self.options.warm + 1
            shrink(self.net, self.structure, self.keep, (length - done - 1) / (length - done) if done < length else 0.0)

    def state(self) -> dict[str, Tensor]:
        return {f"keep.{name}": kept for name, kept in self.keep.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.keep = {key.removeprefix("keep."): kept.cpu() for key, kept in state.items()}


@torch.no_grad()
def shrink(net: nn.Module, structure: Structure, keep: Mapping[str, Tensor], factor: float) -> None:
    """Multiply the rows of the units that do not stay: of W, its bias and B."""
    for site in structure.sites:
        away = torch.ones(site.units, dtype=torch.bool)
        away[keep[site.name]] = False
        for layer, index in owned_rows(net, site):
            rows = index[away.to(index.device)].flatten()
            for parameter in (layer.weight, layer.bias, layer.lora_b):
                if parameter is not None:
                    parameter[rows] *= factor


@chain(
    "lorashear",
    title="LoRAShear: LHSPG, then low-rank recovery",
    links=("lhspg", "lora"),
    paper="https://arxiv.org/abs/2310.18356",
)
class LoraShear(Chain):
    """Redundant units shrink while adapters learn; adapters of the smaller model are trained then."""

    recipes: ClassVar[dict[str, Any]] = {"mini": {}}
