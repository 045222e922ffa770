"""What a pruner by score decides of each block: masks of its weights, or the importance of its units, which are cut."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ..calibration.statistics import Statistics
from ..calibration.walk import Decision, Seen
from ..compression.cut import Kept
from ..compression.masks import Keep, PackedMasks, apply_masks, keep_over, last_of_all
from ..errors import UserError
from ..job import Job
from ..structure import Block, Site, Structure
from . import allocation
from .modality import modality
from .options import CalibratedOptions, ScoreOptions


def checked_score(method: str, name: str, scores: Tensor, shape: Sequence[int]) -> Tensor:
    """The scores, one for each entry. Raises UserError naming the method where they are of another shape or not finite:
    a ranking of such numbers takes away something else than was asked for."""
    if not isinstance(scores, Tensor) or tuple(scores.shape) != tuple(shape):
        shown = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise UserError(f"{method}: the scores of {name} are of {shown}, and it needs {tuple(shape)}: correct score().")
    if not bool(scores.isfinite().all()):
        bad = int((~scores.isfinite()).sum())
        raise UserError(
            f"{method}: {bad:,} of the {scores.numel():,} numbers of {name} are not finite: correct its score(), or "
            "calibrate in fp32 on data that the model's numbers stay finite on."
        )
    return scores


class Scorer(Protocol):
    """What is used of a pruner by score."""

    name: ClassVar[str]
    options: Any
    additive: ClassVar[bool]

    def score(self, weight: Tensor, statistics: Statistics | None) -> Tensor: ...
    def prune(self, weight: Tensor, statistics: Statistics | None, keep: Keep) -> dict[str, Tensor]: ...
    def importance(self, net: nn.Module, site: Site, seen: Seen) -> Tensor: ...


class Decisions(ABC):
    """Collects what is decided of each block. of_block() decides, add() takes the decision in (now or from a
    checkpoint) and shows it to the blocks after; finish() changes the model for good."""

    def __init__(
        self, pruner: Scorer, job: Job, structure: Structure, towers: Mapping[str, float], ratios: Mapping[str, float]
    ) -> None:
        self.pruner, self.job, self.structure, self.towers, self.ratios = pruner, job, structure, towers, ratios
        self.options: ScoreOptions = pruner.options
        self.net = job.model.net
        self.at_once = getattr(self.options, "propagate", "pruned") == "pruned" and not self.options.over_towers
        self.taken: dict[str, Tensor] = {}  # all but masks
        self.masks = PackedMasks()

    def parameters(self) -> list[str]:
        """What gradients are needed of."""
        return list(self.structure.matrices)

    @abstractmethod
    def of_block(self, block: Block, seen: Seen) -> dict[str, Tensor]:
        """The decision: tensors by name, as a checkpoint keeps them. seen: the statistics of the block's matrices."""

    @abstractmethod
    def add(self, decision: Decision) -> None:
        """Take in what of_block() decided."""

    @abstractmethod
    def finish(self) -> None:
        """Tell the job what is masked or cut."""

    def groups(self) -> list[tuple[Structure, float]]:
        """The parts that are ranked as one, and their ratios."""
        return ranked_parts(self.structure, self.options, self.towers)


class MaskDecisions(Decisions):
    """Masks: unstructured and n:m."""

    def of_block(self, block: Block, seen: Seen) -> dict[str, Tensor]:
        decision: dict[str, Tensor] = {}
        for name in dict.fromkeys(m for site in block.sites for m in site.matrices):
            weight = weight_of(self.net, name)
            if self.options.over_towers:
                scores = checked_score(self.pruner.name, name, self.pruner.score(weight, seen.get(name)), weight.shape)
                decision[f"score/{name}"] = last_of_all(scores, self._gone(name))
            elif self.ratios[name] > 0:
                pruned = self.pruner.prune(weight, seen.get(name), self._keep(name))
                if "weight" in pruned:
                    checked_score(self.pruner.name, f"changed {name}", pruned["weight"], weight.shape)
                decision.update({f"{what}/{name}": tensor for what, tensor in pruned.items()})
        return decision

    def _keep(self, name: str) -> Keep:
        options = self.options
        by_row = options.group == "row" or (options.group == "code" and name not in self._seen_by_vision())
        rule = "exact" if by_row and options.group == "code" else options.rule
        return Keep(self.ratios[name], "row" if by_row else "matrix", rule, options.n_m, self._gone(name))

    def _gone(self, name: str) -> Tensor | None:
        """Zeros of links before, which stay."""
        mask = self.job.changes.state.masks.get(name)
        return None if mask is None else ~mask.to(self.net.get_parameter(name).device)

    def _seen_by_vision(self) -> set[str]:
        return {n for t in self.structure.towers if modality(t) == "vision" for n in Structure((t,)).matrices}

    def add(self, decision: Decision) -> None:
        for key, tensor in decision.items():
            what, _, name = key.partition("/")
            if self.at_once:
                self._show(what, name, tensor)
            if what == "mask":
                self.masks[name] = tensor
            elif what != "weight" or not self.at_once:  # a second copy of the model's weights is not needed
                self.taken[key] = tensor

    def _show(self, what: str, name: str, tensor: Tensor) -> None:
        if what == "weight":
            self.job.changes.update({name: tensor})
        elif what == "mask":
            apply_masks(self.net, {name: tensor})

    def finish(self) -> None:
        options = self.options
        scores: dict[str, Tensor] = {}
        for key, tensor in self.taken.items():
            what, _, name = key.partition("/")
            if what == "weight":
                self._show("weight", name, tensor)
            else:
                scores[name] = tensor
        for part, ratio in self.groups() if options.over_towers else ():
            self.masks.update(keep_over({n: scores[n] for n in part.matrices}, ratio, options.rule))
        self.job.changes.mask(self.masks, str(options.sparsity) if options.n_m else "unstructured")


class CutDecisions(Decisions):
    """Cuts: structured."""

    def parameters(self) -> list[str]:
        gated = [s.param for site in self.structure.sites for s in site.slices if s.gated]
        return list(dict.fromkeys([*self.structure.matrices, *gated]))

    def of_block(self, block: Block, seen: Seen) -> dict[str, Tensor]:
        scores = {site.name: (site, self.pruner.importance(self.net, site, seen)) for site in block.sites}
        return {name: checked_score(self.pruner.name, name, of, (site.units,)) for name, (site, of) in scores.items()}

    def add(self, decision: Decision) -> None:
        self.taken.update({name: tensor.cpu() for name, tensor in decision.items()})
        if self.at_once and isinstance(self.options, CalibratedOptions):
            for name in decision:
                silence(self.net, self.structure.site(name), self._uniform(name))

    def _uniform(self, name: str) -> Tensor:
        ratio = self.ratios[next(iter(self.structure.site(name).matrices))]
        if ratio == 0:
            return torch.arange(len(self.taken[name]))
        return allocation.uniform({name: self.taken[name]}, ratio, self.options.multiple_of)[name]

    def finish(self) -> None:
        if not self.options.over_towers:
            return self.job.changes.cut({name: self._uniform(name) for name in self.taken}, self.structure)
        keep: Kept = {}
        for part, ratio in self.groups():
            keep.update(self._unified(part, ratio))
        return self.job.changes.cut(keep, self.structure)

    def _unified(self, part: Structure, ratio: float) -> Kept:
        importance = {site.name: self.taken[site.name] for site in part.sites}
        if ratio == 0:
            return {name: torch.arange(len(of_site)) for name, of_site in importance.items()}
        return ranked_units(part, importance, ratio, self.options.multiple_of, additive=self.pruner.additive)


def ranked_parts(
    structure: Structure, options: ScoreOptions, towers: Mapping[str, float]
) -> list[tuple[Structure, float]]:
    """What group=model and group=tower rank as one, with the ratio that goes of each. towers: of each, its ratio."""
    if options.group == "model":
        return [(structure, options.fraction)]
    return [(Structure((tower,)), towers[tower.name]) for tower in structure.towers]


def refuse_units(structure: Structure, fraction: float, multiple_of: int = 1) -> None:
    """Raise UserError where the units of the structure cannot give `fraction` away."""
    cost = {site.name: float(site.entries_per_unit) for site in structure.sites}
    allocation.refuse_unreachable({site.name: site.units for site in structure.sites}, cost, fraction, multiple_of)


def silence(net: nn.Module, site: Site, kept: Tensor) -> None:
    """Zeros where the gates of all units but `kept` act: the site computes as if they were cut."""
    away = torch.ones(site.units, dtype=torch.bool)  # (units,)
    away[kept] = False
    with torch.no_grad():
        for part in site.slices:
            if part.gated:
                parameter = net.get_parameter(part.param)
                parameter[part.index[away].flatten().to(parameter.device)] = 0


def ranked_units(
    structure: Structure, importance: Mapping[str, Tensor], fraction: float, multiple_of: int, *, additive: bool
) -> Kept:
    """One ranking over all units of the structure."""
    sites = structure.sites
    if not additive:
        # Norms of sites differ with their sizes: comparable as a mean square of the unit's entries.
        importance = {s.name: importance[s.name] / s.entries_per_unit**0.5 for s in sites}
    cost = {site.name: float(site.entries_per_unit) for site in sites}
    return allocation.unified(importance, cost, fraction, multiple_of)


def unit_importance(site: Site, score: Callable[[str], Tensor], *, additive: bool = False) -> Tensor:
    """(units,) norm, or sum, of the scores (name -> matrix) of the matrix entries that a unit owns."""
    total = torch.zeros(site.units)  # (units,)
    for part in site.slices:
        if len(part.shape) > 1:
            scores = score(part.param).cpu().float()  # (out, in)
            total += (scores if additive else scores.square()).sum(1 - part.dim)[part.index].sum(1)
    return total if additive else total.sqrt()


def weight_of(net: nn.Module, name: str) -> Tensor:
    """At least in single precision."""
    weight = net.get_parameter(name).detach()
    return weight if weight.dtype == torch.float64 else weight.float()
