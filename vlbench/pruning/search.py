"""A search with gates: what their gradients say of the units is summed over training steps, and moves the gates.

Here are the options, the sums, the ranking and the resume. What one step's gradient says of a unit, and how the pruned
ratio grows, is the formula of the method: a subclass of GateSearch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from ..compression.cut import Kept
from ..compression.gates import Gates
from ..errors import UserError
from ..options import PruneOptions, later
from ..structure import Site, Structure
from ..training.loop import Hook, NotFiniteError, Schedule
from . import allocation


class SearchOptions(PruneOptions, Schedule):
    """The search. Paper and code differ in standardise, unit_cost, budget and softmax_scale: see the recipes."""

    steps: int = 150
    lr: float = 3e-4
    batch_size: int = 128
    decay: Literal["cosine", "constant", "poly"] = "constant"
    interval: int = Field(5, ge=1, description="steps between two updates of the gates")
    update_at_zero: bool = Field(
        False, description="update after the first step too, as the code does for BLIP and CLIP"
    )
    standardise: Literal["sum", "step", "off"] = Field(
        "sum",
        description="z-score per kind of unit: of the summed gradients (code), of every step's (paper), or none",
    )
    ramp: Literal["sine", "sine-code", "linear"] = Field(
        "sine",
        description="how the pruned ratio grows: p sin(pi t / 2T), the paper's cosine; sine-code: as the published "
        "code has it to the last bit, which multiplies pi by t before it divides by T; linear: p t / T",
    )
    unit_cost: str = Field(
        "params", description="what a unit costs: params (matrix entries), macs, or attention:ffn like 36:1"
    )
    budget: Literal["exact", "code"] = Field(
        "exact",
        description="exact: the removed cost is the target; code: the published rule, one unit short of it",
    )
    multiple_of: int = Field(1, ge=1, description="round kept widths to a multiple of this (8 suits GPU kernels)")
    importance: Literal["signed", "abs", "square", "taylor", "weight", "random"] = later(
        "signed",
        description="what keeps a unit, of its gate's gradients g: a small sum of g (signed, UPop's); a large sum of "
        "|g| or of g^2; taylor: a large |sum of gate * g|; weight: the root mean square of its weights; random: a draw",
    )
    allocation: Literal["global", "uniform"] = later(
        "global",
        description="global: one ranking over all units (unified); uniform: every site loses the same fraction (even "
        "assignment), whatever unit_cost and budget say",
    )
    pruning: Literal["progressive", "iterative", "once"] = later(
        "progressive",
        description="progressive: gates fall to zero, and units may come back; iterative: to zero at once at every "
        "update, for good; once: gates stay at 1, and one cut follows the last step",
    )
    unit: Literal["shared", "head"] = later(
        "shared",
        description="unit of attention: shared: one dimension in every head; head: whole heads (key/value groups)",
    )
    softmax_scale: Literal["original", "kept"] = later(
        "original",
        description="of cut attention: original keeps the model's function; kept: 1/sqrt(kept head size) in the "
        "attention classes where the published code comes to it (BERT, CLIP)",
    )

    @field_validator("ramp", mode="before")
    @classmethod
    def _paper_word(cls, value: object) -> object:
        return "sine" if value == "cosine" else value

    @field_validator("unit_cost")
    @classmethod
    def _known_cost(cls, value: str) -> str:
        parts = value.split(":")
        if value not in ("params", "macs") and not (len(parts) == 2 and all(p.isdigit() and int(p) for p in parts)):
            raise ValueError(f"{value} should be params, macs, or two numbers like 36:1")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> SearchOptions:
        if self.standardise == "step" and self.importance in ("weight", "random"):
            raise ValueError(
                f"standardise=step is of every step's gradients, and importance={self.importance} has none"
            )
        if self.budget == "code" and self.multiple_of > 1 and self.allocation == "global":
            raise ValueError(f"multiple_of={self.multiple_of} is not met by budget=code, which rounds no width")
        return self

    def units_of(self, structure: Structure) -> Structure:
        """The structure with the unit asked for. Raises UserError, with the reason, where a site has no such unit."""
        return structure if self.unit == "shared" else structure.with_units(_whole_heads)


def _whole_heads(site: Site) -> str:
    if site.kind != "attention":
        return site.unit
    return "kv group" if "kv group" in {s.unit for s in (site, *site.variants)} else "head"


class GateSearch(Hook):
    """Sums evidence against units and moves their gates by it. `kept` is there after the last step.

    cost: site -> cost of one of its units. updates: (step, ratio) of every move; selected: how many units'
    gates it moved.
    """

    def __init__(
        self, gates: Gates, structure: Structure, options: SearchOptions, cost: Mapping[str, float], *, seed: int = 0
    ) -> None:
        self.gates, self.structure, self.options, self.cost, self.seed = gates, structure, options, cost, seed
        self.kinds = {site.name: site.kind for site in structure.sites}
        self.total = {name: torch.zeros_like(g, dtype=torch.float64) for name, g in gates.value.items()}
        self.kept: Kept = {name: torch.arange(len(g)) for name, g in gates.value.items()}
        self.updates: list[tuple[int, float]] = []
        self.selected: list[int] = []

    def evidence(self, gradient: Tensor, gate: Tensor) -> Tensor:
        """(units,) dL/dgate of one step and the gates' values -> what is added to `total`."""
        raise NotImplementedError

    def score(self) -> dict[str, Tensor]:
        """Site -> (units,), large: prune. From `total`."""
        raise NotImplementedError

    def ramp(self, done: int, steps: int) -> float:
        """Steps that are done, and all there are -> part of the target that is pruned, 1 at the end."""
        raise NotImplementedError

    def leaves(self) -> list[Tensor]:
        return list(self.gates.value.values())

    def after_backward(self, step: int) -> None:
        gradient = self.gates.take()
        refuse_not_finite(gradient)
        evidence = {n: self.evidence(g, self.gates.value[n].detach().double()) for n, g in gradient.items()}
        if self.options.standardise == "step":
            evidence = standardise(evidence, self.kinds)
        gone = self._gone()
        for name, value in evidence.items():
            self.total[name] += value.masked_fill(gone[name], 0.0) if gone else value

    def after_step(self, step: int) -> None:
        options = self.options
        last = step == options.steps - 1
        early = step == 0 and not options.update_at_zero
        if not last and (options.pruning == "once" or step % options.interval or early):
            return
        target = options.fraction
        ratio = target if last else target * self.ramp(step + 1, options.steps)
        self.kept = self._chosen(ratio, last=last)
        selected = 0.0 if last or options.pruning == "iterative" else 1 - ratio / target
        self.gates.set({n: self._gate(n, selected) for n in self.total})
        self.updates.append((step, ratio))
        self.selected.append(sum(len(total) - len(self.kept[name]) for name, total in self.total.items()))

    def _gone(self) -> dict[str, Tensor]:
        """Site -> units that are gone for good, when pruning iteratively; else nothing."""
        if self.options.pruning != "iterative":
            return {}
        return {name: gate.detach() == 0 for name, gate in self.gates.value.items()}

    def _chosen(self, ratio: float, *, last: bool) -> Kept:
        """The units that stay when `ratio` of the cost goes."""
        options, score, gone = self.options, self.score(), self._gone()
        if options.standardise == "sum":
            score = standardise(score, self.kinds)
        score = {n: v.cpu().masked_fill(gone[n].cpu(), torch.inf) if gone else v.cpu() for n, v in score.items()}
        importance = {name: -value for name, value in score.items()}
        # Rounding widths matters for the model that is cut, not for gates that may still come back.
        multiple = options.multiple_of if last or gone else 1
        if options.allocation == "uniform":
            kept = allocation.uniform(importance, ratio, multiple)
        elif options.budget == "code":
            kept = code_budget(score, self.cost, ratio)
        else:
            kept = allocation.unified(importance, self.cost, ratio, multiple)
        # The removed cost is met to the nearest unit, which may be one unit less than at the update before.
        return {n: k[~gone[n].cpu()[k]] for n, k in kept.items()} if gone else kept

    def _gate(self, name: str, selected: float) -> Tensor:
        """1 for kept units, `selected` for the others."""
        gate = torch.full_like(self.gates.value[name].detach(), selected)  # (units,)
        gate[self.kept[name].to(gate.device)] = 1.0
        return gate

    def state(self) -> dict[str, Tensor]:
        state = {f"total.{n}": v for n, v in self.total.items()}
        state.update({f"gate.{n}": v.detach() for n, v in self.gates.value.items()})
        state["updates"] = torch.tensor(self.updates, dtype=torch.float64).view(-1, 2)
        state["selected"] = torch.tensor(self.selected, dtype=torch.long)
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        self.total = {n: state[f"total.{n}"].to(v.device) for n, v in self.total.items()}
        self.gates.set({n: state[f"gate.{n}"] for n in self.gates.value})
        self.updates = [(int(step), float(ratio)) for step, ratio in state["updates"].tolist()]
        self.selected = state["selected"].tolist()


def refuse_not_finite(gradient: Mapping[str, Tensor]) -> None:
    """Raise NotFiniteError, naming the site, where a gate's gradient is no number: sums would be lost for good."""
    if not bool(torch.isfinite(torch.cat(list(gradient.values()))).all()):
        site = next(name for name, value in gradient.items() if not bool(torch.isfinite(value).all()))
        raise NotFiniteError(f"a gate gradient of {site}")


def standardise(values: Mapping[str, Tensor], kinds: Mapping[str, str]) -> dict[str, Tensor]:
    """z-score over all units of one kind, all sites and modalities together; unbiased standard deviation."""
    result: dict[str, Tensor] = {}
    for kind in dict.fromkeys(kinds.values()):
        names = [n for n in values if kinds[n] == kind]
        joined = torch.cat([values[n] for n in names])  # (units of the kind,)
        mean, deviation = joined.mean(), joined.std()
        if not float(deviation) > 0:
            raise UserError(f"all gate gradients of the {kind} units are equal: nothing can be ranked. Check the data.")
        result.update({n: (values[n] - mean) / deviation for n in names})
    return {n: result[n] for n in values}


def code_budget(score: Mapping[str, Tensor], cost: Mapping[str, float], ratio: float) -> Kept:
    """The published code's rule. With C_i the cumulative cost in descending order of the score, the threshold is the
    score at the i with C_i nearest to ratio * C: units strictly above it go, and every site keeps its lowest score."""
    flat = torch.cat(list(score.values()))  # (U,) all units
    price = torch.cat([torch.full((len(v),), float(cost[n]), dtype=torch.float64) for n, v in score.items()])
    order = flat.argsort(descending=True, stable=True)  # (U,)
    cumulative = price[order].cumsum(0)  # (U,)
    threshold = flat[order[int((cumulative - price.sum() * ratio).abs().argmin())]]
    return {n: ((v <= threshold) | (v == v.min())).nonzero().flatten() for n, v in score.items()}
