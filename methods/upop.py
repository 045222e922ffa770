"""UPop: unified and progressive pruning (Shi et al., ICML 2023, arXiv 2301.13741).

Search: gates on all units, trained weights. The gradient of the loss with respect to a gate, summed over the steps, is
the unit's score (large: a smaller gate lowers the loss: prune). Scores are standardised over all attention units and
over all feed-forward units, ranked together (unified), and the selected units' gates fall to zero along a sine
(progressive). At the end gates are exactly 0 or 1 and the zeros are cut out; the rest is finetuned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, field_validator
from torch import Tensor

from vlbench.cost.units import unit_macs
from vlbench.errors import UserError
from vlbench.job import Job
from vlbench.method import Chain, Context, Method, PruneOptions, chain, method
from vlbench.pruning.allocation import unified
from vlbench.pruning.cut import Kept
from vlbench.pruning.gates import Gates
from vlbench.structure import Structure
from vlbench.training.loop import Hook, Schedule


class SearchOptions(PruneOptions, Schedule):
    """The search. Paper and code differ in `standardise`, `unit_cost` and `budget`: see the recipes."""

    steps: int = 150
    lr: float = 3e-4
    batch_size: int = 128
    decay: Literal["cosine", "constant"] = "constant"
    interval: int = Field(5, ge=1, description="steps between two updates of the gates")
    update_at_zero: bool = Field(
        False, description="update after the first step too, as the code does for BLIP and CLIP"
    )
    standardise: Literal["sum", "step", "off"] = Field(
        "sum",
        description="z-score per kind of unit: of the summed gradients (code), of every step's (paper), or none",
    )
    ramp: Literal["sine", "linear"] = Field(
        "sine", description="how the pruned ratio grows: p sin(pi t / 2T), or p t / T"
    )
    unit_cost: str = Field(
        "params", description="what a unit costs: params (matrix entries), macs, or attention:ffn like 36:1"
    )
    budget: Literal["exact", "code"] = Field(
        "exact",
        description="exact: the removed cost is the target; code: the published rule, one unit short of it",
    )
    multiple_of: int = Field(1, ge=1, description="round kept widths to a multiple of this (8 suits GPU kernels)")

    @field_validator("unit_cost")
    @classmethod
    def _known_cost(cls, value: str) -> str:
        parts = value.split(":")
        if value not in ("params", "macs") and not (len(parts) == 2 and all(p.isdigit() and int(p) for p in parts)):
            raise ValueError(f"{value} should be params, macs, or two numbers like 36:1")
        return value


def _small_batches(context: Context) -> dict[str, Any]:
    """As finetune has them: see there."""
    return {"batch_size": 48} if context.task == "ade20k" else {}


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

    Options = SearchOptions
    recipes = {"mini": _small_batches}  # noqa: RUF012

    def apply(self, job: Job) -> None:
        options: SearchOptions = self.options
        structure = job.structure
        gates = Gates(job.model.net, structure)
        search = Search(gates, structure, options, self._cost(job, structure))
        job.train("upop_search", options, [search])
        gates.remove()
        job.state.log["upop_search"]["updates"] = search.updates
        job.cut(search.kept)

    def _cost(self, job: Job, structure: Structure) -> dict[str, float]:
        """Site -> cost of one unit."""
        options: SearchOptions = self.options
        if options.unit_cost == "params":
            return {s.name: float(s.entries_per_unit) for s in structure.sites}
        if options.unit_cost == "macs":
            sample = job.calibration(1)[0]
            return unit_macs(job.model.net, structure, lambda: job.loss(sample))
        attention, ffn = (float(x) for x in options.unit_cost.split(":"))
        return {s.name: attention if s.kind == "attention" else ffn for s in structure.sites}


class Search(Hook):
    """Sums gate gradients and moves the gates. `kept` is there after the last step."""

    def __init__(self, gates: Gates, structure: Structure, options: SearchOptions, cost: Mapping[str, float]) -> None:
        self.gates, self.options, self.cost = gates, options, cost
        self.kinds = {site.name: site.kind for site in structure.sites}
        self.total = {name: torch.zeros_like(g, dtype=torch.float64) for name, g in gates.value.items()}
        self.kept: Kept = {name: torch.arange(len(g)) for name, g in gates.value.items()}
        self.updates: list[tuple[int, float]] = []

    def after_backward(self, step: int) -> None:
        gradient = self.gates.take()
        if self.options.standardise == "step":
            gradient = standardise(gradient, self.kinds)
        for name, value in gradient.items():
            self.total[name] += value

    def after_step(self, step: int) -> None:
        last = step == self.options.steps - 1
        if not last and (step % self.options.interval or (step == 0 and not self.options.update_at_zero)):
            return
        target = self.options.fraction
        ratio = target if last else target * self._ramp((step + 1) / self.options.steps)
        score = standardise(self.total, self.kinds) if self.options.standardise == "sum" else self.total
        score = {name: value.cpu() for name, value in score.items()}
        if self.options.budget == "code":
            self.kept = code_budget(score, self.cost, ratio)
        else:
            # Rounding widths matters for the model that is cut, not for the gates on the way.
            importance = {name: -value for name, value in score.items()}
            self.kept = unified(importance, self.cost, ratio, self.options.multiple_of if last else 1)
        self.gates.set({n: self._gate(n, 0.0 if last else 1 - ratio / target) for n in self.total})
        self.updates.append((step, ratio))

    def _ramp(self, done: float) -> float:
        # sin(pi x / 2), written as the code does so that gates are equal to the last bit.
        return ((1 - math.cos(math.pi * done)) / 2) ** 0.5 if self.options.ramp == "sine" else done

    def _gate(self, name: str, selected: float) -> Tensor:
        """1 for kept units, `selected` for the others (reversible until the last update, where it is 0)."""
        gate = torch.full_like(self.gates.value[name].detach(), selected)
        gate[self.kept[name].to(gate.device)] = 1.0
        return gate

    def state(self) -> dict[str, Tensor]:
        state = {f"total.{n}": v for n, v in self.total.items()}
        state.update({f"gate.{n}": v.detach() for n, v in self.gates.value.items()})
        state["updates"] = torch.tensor(self.updates, dtype=torch.float64).view(-1, 2)
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        self.total = {n: state[f"total.{n}"].to(v.device) for n, v in self.total.items()}
        self.gates.set({n: state[f"gate.{n}"] for n in self.gates.value})
        self.updates = [(int(step), float(ratio)) for step, ratio in state["updates"].tolist()]


def standardise(values: Mapping[str, Tensor], kinds: Mapping[str, str]) -> dict[str, Tensor]:
    """z-score over all units of one kind, all sites and modalities together; unbiased standard deviation."""
    result: dict[str, Tensor] = {}
    for kind in dict.fromkeys(kinds.values()):
        names = [n for n in values if kinds[n] == kind]
        joined = torch.cat([values[n] for n in names])
        mean, deviation = joined.mean(), joined.std()
        if not float(deviation) > 0:
            raise UserError(f"all gate gradients of the {kind} units are equal: nothing can be ranked. Check the data.")
        result.update({n: (values[n] - mean) / deviation for n in names})
    return {n: result[n] for n in values}


def code_budget(score: Mapping[str, Tensor], cost: Mapping[str, float], ratio: float) -> Kept:
    """The published code's rule. With C_i the cumulative cost in descending order of the score, the threshold is the
    score at the i with C_i nearest to ratio * C: units strictly above it go, and every site keeps its lowest score."""
    flat = torch.cat(list(score.values()))
    price = torch.cat([torch.full((len(v),), float(cost[n]), dtype=torch.float64) for n, v in score.items()])
    order = flat.argsort(descending=True, stable=True)
    cumulative = price[order].cumsum(0)
    threshold = flat[order[int((cumulative - price.sum() * ratio).abs().argmin())]]
    return {n: ((v <= threshold) | (v == v.min())).nonzero().flatten() for n, v in score.items()}


class Published(NamedTuple):
    """The authors' script for one multimodal task. train: its samples; epochs: target -> epochs of the search, and as
    many of finetuning; interval: steps between two updates."""

    train: int
    epochs: Mapping[float, int]
    lr: float
    interval: int


PUBLISHED = {
    "nlvr2": Published(86_373, {0.5: 15, 2 / 3: 20, 0.75: 23, 0.8: 24, 0.9: 27}, 3e-6, 50),
    "vqav2": Published(443_757, {0.5: 10, 0.75: 15}, 2e-5, 1000),
    "coco_caption": Published(566_747, {0.5: 5, 0.75: 8}, 1e-5, 100),
    "coco_retrieval": Published(566_747, {0.5: 6, 0.75: 9}, 1e-5, 200),
    "flickr30k_retrieval": Published(145_000, {0.5: 12, 0.75: 18}, 1e-5, 50),
}
BATCH = 256
# DeiT: 60 epochs of search and 300 of finetuning in batches of 4,096, at target -> steps between two updates.
DEIT_INTERVALS = {0.1: 1600, 0.2: 1000, 0.3: 800, 0.4: 800, 0.5: 800}
DEIT_STEPS = 1_281_167 // 4096  # an epoch


def _paper(context: Context) -> dict[str, Any]:
    """The published hyper-parameters, those of the nearest published target; our exact budget, true costs and
    function-preserving cut stay."""
    target = 0.5 if context.sparsity is None else context.sparsity
    if context.task == "imagenet":
        interval = DEIT_INTERVALS[_nearest(DEIT_INTERVALS, target)]
        return _both(60 * DEIT_STEPS, 300 * DEIT_STEPS, 8e-4, 4096, interval, min_lr=1e-5)
    if context.task not in PUBLISHED:
        reason = "trains with SGD there, which is not built" if context.task == "ade20k" else "has no setting"
        raise UserError(f"the paper {reason} for task={context.task}: give recipe=mini and your own steps and lr.")
    published = PUBLISHED[context.task]
    steps = published.epochs[_nearest(published.epochs, target)] * (published.train // BATCH)
    decay = 0.2 if context.model.startswith("clip") else 0.05
    return _both(steps, steps, published.lr, BATCH, published.interval, weight_decay=decay)


def _nearest(settings: Mapping[float, int], target: float) -> float:
    return min(settings, key=lambda known: abs(known - target))


def _both(
    search: int, finetune: int, lr: float, batch: int, interval: int, *, min_lr: float = 0.0, weight_decay: float = 0.05
) -> dict[str, Any]:
    return {
        "upop_search.steps": search, "upop_search.lr": lr, "upop_search.batch_size": batch,
        "upop_search.weight_decay": weight_decay, "upop_search.interval": interval,
        "finetune.steps": finetune, "finetune.lr": lr, "finetune.warmup": 0, "finetune.min_lr": min_lr,
        "finetune.batch_size": batch, "finetune.weight_decay": weight_decay,
    }  # fmt: skip


def _code(context: Context) -> dict[str, Any]:
    """What the published scripts do: unit cost 12 for the vision models, 36 for the others."""
    vision_only = context.task in ("imagenet", "ade20k")
    return {
        "upop_search.budget": "code",
        "upop_search.unit_cost": "12:1" if vision_only else "36:1",
        "upop_search.update_at_zero": not vision_only,
    }


@chain(
    "upop",
    title="UPop (ICML 2023)",
    links=("upop_search", "finetune"),
    paper="https://arxiv.org/abs/2301.13741",
)
class UPop(Chain):
    """Unified and progressive search, then finetuning with as many steps."""

    recipes = {"mini": {}, "paper": _paper, "upop-code": _code}  # noqa: RUF012
