"""Pruners that are one formula: the file of the method says score(), everything else is here."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..errors import UserError
from ..job import Job
from ..method import Method, PruneOptions
from ..storage import digest
from ..structure import Block, Site, Structure
from ..training.checkpoint import CheckpointStore
from . import allocation
from .activations import Room
from .calibration import Statistics, calibrate
from .cut import Kept
from .ecoflap import block_ratios, first_order, seeds_from, zeroth_order
from .gradients import gradients
from .masks import Keep, apply_masks, keep_over
from .modality import modality, tower_ratios
from .options import CalibratedOptions, GradientOptions, SampledOptions, ScoreOptions

__all__ = [
    "CalibratedOptions", "GradientOptions", "Reconstructor", "SampledOptions", "ScoreOptions", "ScorePruner",
    "UnitOptions", "UnitPruner", "refuse_widths",
]  # fmt: skip

Seen = Mapping[str, Statistics | None]
ECOFLAP_BATCH = 8  # samples a batch of the loss that blocks are scored by, as in the authors' scripts


class ScorePruner(Method):
    """Zeros for the weights with the lowest score (unstructured, n:m), or no more units of the lowest (structured).

    Which Options a subclass has says what its score is told: CalibratedOptions: statistics of the inputs, block by
    block; GradientOptions: gradients of the loss; ScoreOptions: nothing.
    """

    Options: ClassVar[type[ScoreOptions]] = ScoreOptions
    # A unit's importance is a sum of saliencies, which are changes of the loss, and not a norm of scores: units of
    # different sites are compared as they are.
    additive: ClassVar[bool] = False
    gram: ClassVar[bool] = False

    @abstractmethod
    def score(self, weight: Tensor, statistics: Statistics | None) -> Tensor:
        """(out, in) -> (out, in): the importance of each weight, larger = more important."""

    def importance(self, net: nn.Module, site: Site, seen: Seen) -> Tensor:
        """(units,) importance of a site's units from the scores of what they own: the norm, or the sum."""
        return unit_importance(
            site, lambda name: self.score(_weight(net, name), seen.get(name)), additive=self.additive
        )

    def prune(self, weight: Tensor, statistics: Statistics | None, keep: Keep) -> dict[str, Tensor]:
        """{"mask": (out, in)}, and {"weight": (out, in)} where what stays is changed too."""
        return {"mask": keep(self.score(weight, statistics))}

    def apply(self, job: Job) -> None:
        options: ScoreOptions = self.options
        structure = job.structure
        if options.pattern not in self.patterns:
            raise UserError(
                f"{self.name} does not make pattern={options.pattern}: it makes {', '.join(self.patterns)}."
            )
        towers = tower_ratios(structure, options)
        if options.n_m is not None:
            pruned = Structure(tuple(t for t in structure.towers if towers[t.name] > 0))
            refuse_widths(pruned.matrices, *options.n_m)
        job.model.net.eval()
        ratios = self._ratios(job, structure, towers)
        work: _Work = (_Units if options.pattern == "structured" else _Weights)(self, job, structure, towers, ratios)
        self._walk(job, structure, work)
        work.finish()

    # Ratios and data -----------------------------------------------------------------------------------------------

    def _ratios(self, job: Job, structure: Structure, towers: Mapping[str, float]) -> dict[str, float]:
        """Matrix -> the ratio that goes, by tower or by block."""
        options: ScoreOptions = self.options
        if isinstance(options, SampledOptions) and options.allocation != "uniform":
            found = self._ecoflap(job, structure, options)
            job.state.log.setdefault(self.name, {})["ratios"] = {n: round(r, 6) for n, r in found.items()}
            return found
        return {n: towers[t.name] for t in structure.towers for n in Structure((t,)).matrices}

    def _ecoflap(self, job: Job, structure: Structure, options: SampledOptions) -> dict[str, float]:
        count = min(options.allocation_samples, options.calibration_samples)
        batches = job.calibration(count, ECOFLAP_BATCH)
        losses = [partial(job.loss, batch) for batch in batches]
        net, names = job.model.net, list(structure.matrices)
        if options.allocation == "ecoflap":
            sizes = [len(batch.samples) for batch in batches]
            scores = first_order(net, names, list(zip(losses, sizes, strict=True)))
        else:
            scores = zeroth_order(
                net, names, losses, seeds_from(job.seed),
                progress=lambda done, total: job.progress("allocate", done, total),
            )  # fmt: skip
        return block_ratios(structure, scores, options.fraction, code=options.group == "code")

    def _walk(self, job: Job, structure: Structure, work: _Work) -> None:
        """Give every block with its statistics to `work`, in order of data flow."""
        options = self.options
        if isinstance(options, CalibratedOptions):
            return self._calibrate(job, structure, work, options)
        seen: Seen = {}
        if isinstance(options, GradientOptions):
            batches = job.calibration(options.calibration_samples, options.gradient_batch)
            self._told(job, batches)
            seen = gradients(
                job.model.net, work.parameters(), [(partial(job.loss, b), len(b.samples)) for b in batches],
                dtype=getattr(torch, options.statistics),
                progress=lambda done, total: job.progress("gradients", done, total),
            )  # fmt: skip
        for tower in structure.towers:
            for block in tower.blocks:
                work.add(work.block(block, seen))
        return None

    def _calibrate(self, job: Job, structure: Structure, work: _Work, options: CalibratedOptions) -> None:
        """Block by block. What was found of a block is on disk before the next one is begun."""
        batches = job.calibration(options.calibration_samples, 1)
        self._told(job, batches)
        folder = job.folder / "checkpoint" / self.name
        stores = [
            CheckpointStore(folder / f"{i:04d}", {**job.identity, "stage": self.name, "block": block.path}, 0.0)
            for i, block in enumerate(b for t in structure.towers for b in t.blocks)
        ]
        done = 0
        while done < len(stores) and (state := stores[done].load()) is not None:
            device = next(job.model.net.parameters()).device
            work.add({name: tensor.to(device) for name, tensor in state[1].items()})
            done += 1
        todo = iter(stores[done:])

        def prune(block: Block, statistics: Mapping[str, Statistics]) -> None:
            found = work.block(block, statistics)
            next(todo).save(0, {name: t.cpu().contiguous() for name, t in found.items()}, {})
            work.add(found)

        calibrate(
            job.model.net, structure, [partial(job.loss, batch) for batch in batches], prune,
            propagate=options.propagate, gram=self.gram, dtype=getattr(torch, options.statistics), skip=done,
            room=Room.here(next(job.model.net.parameters()).device, folder),
            progress=lambda done, total: job.progress("calibrate", done, total),
        )  # fmt: skip

    def _told(self, job: Job, batches: list[Any]) -> None:
        log = job.state.log.setdefault(self.name, {})
        ids = [sample.id for batch in batches for sample in batch.samples]
        log["calibration"] = {"samples": len(ids), "ids": digest(ids)[:12]}


class Reconstructor(ScorePruner):
    """A pruner that changes the weights that stay, to make up for those that go; its score is its own business."""

    gram: ClassVar[bool] = True

    @abstractmethod
    def solve(self, weight: Tensor, statistics: Statistics, keep: Keep) -> tuple[Tensor, Tensor]:
        """(out, in) -> the changed weights with zeros where the mask is False, and the mask."""

    def score(self, weight: Tensor, statistics: Statistics | None) -> Tensor:
        raise NotImplementedError(f"{self.name} has no score of a weight alone")

    def prune(self, weight: Tensor, statistics: Statistics | None, keep: Keep) -> dict[str, Tensor]:
        assert statistics is not None
        weight, mask = self.solve(weight, statistics, keep)
        return {"mask": mask, "weight": weight}


# What becomes of a block ---------------------------------------------------------------------------------------------


class _Work:
    """Collects what is found of each block. block() finds it, add() takes it in (now or from a checkpoint), and shows
    it to the blocks after; finish() changes the model for good."""

    def __init__(
        self, pruner: ScorePruner, job: Job, structure: Structure, towers: Mapping[str, float],
        ratios: Mapping[str, float],
    ) -> None:  # fmt: skip
        self.pruner, self.job, self.structure, self.towers, self.ratios = pruner, job, structure, towers, ratios
        self.options: ScoreOptions = pruner.options
        self.net = job.model.net
        self.at_once = getattr(self.options, "propagate", "pruned") == "pruned" and not self.options.over_towers
        self.found: dict[str, Tensor] = {}

    def parameters(self) -> list[str]:
        """What gradients are needed of."""
        return list(self.structure.matrices)

    def block(self, block: Block, seen: Seen) -> dict[str, Tensor]:
        raise NotImplementedError

    def add(self, found: Mapping[str, Tensor]) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        raise NotImplementedError

    def groups(self) -> list[tuple[Structure, float]]:
        """The parts that are ranked as one, and their ratios."""
        if self.options.group == "model":
            return [(self.structure, self.options.fraction)]
        return [(Structure((tower,)), self.towers[tower.name]) for tower in self.structure.towers]


class _Weights(_Work):
    """Masks: unstructured and n:m."""

    def block(self, block: Block, seen: Seen) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name in dict.fromkeys(m for site in block.sites for m in site.matrices):
            weight = _weight(self.net, name)
            if self.options.over_towers:
                found[f"score/{name}"] = self.pruner.score(weight, seen.get(name))
            elif self.ratios[name] > 0:
                pruned = self.pruner.prune(weight, seen.get(name), self._keep(name))
                found.update({f"{what}/{name}": tensor for what, tensor in pruned.items()})
        return found

    def _keep(self, name: str) -> Keep:
        options = self.options
        by_row = options.group == "row" or (options.group == "code" and name not in self._seen_by_vision())
        rule = "exact" if by_row and options.group == "code" else options.rule
        return Keep(self.ratios[name], "row" if by_row else "matrix", rule, options.n_m)

    def _seen_by_vision(self) -> set[str]:
        return {n for t in self.structure.towers if modality(t) == "vision" for n in Structure((t,)).matrices}

    def add(self, found: Mapping[str, Tensor]) -> None:
        for key, tensor in found.items():
            what, _, name = key.partition("/")
            if self.at_once:
                self._show(what, name, tensor)
            if what != "weight" or not self.at_once:  # a second copy of the model's weights is not needed
                self.found[key] = tensor.cpu() if what == "mask" else tensor

    def _show(self, what: str, name: str, tensor: Tensor) -> None:
        if what == "weight":
            with torch.no_grad():
                self.net.get_parameter(name).copy_(tensor)
        elif what == "mask":
            apply_masks(self.net, {name: tensor})

    def finish(self) -> None:
        options = self.options
        parts: dict[str, dict[str, Tensor]] = {"mask": {}, "weight": {}, "score": {}}
        for key, tensor in self.found.items():
            what, _, name = key.partition("/")
            parts[what][name] = tensor
        for name, weight in parts["weight"].items():
            self._show("weight", name, weight)
        masks = parts["mask"]
        for part, ratio in self.groups() if options.over_towers else ():
            masks.update(keep_over({n: parts["score"][n] for n in part.matrices}, ratio, options.rule))
        self.job.mask(masks, str(options.sparsity) if options.n_m else "unstructured")


class _Units(_Work):
    """Cuts: structured."""

    def parameters(self) -> list[str]:
        gated = [s.param for site in self.structure.sites for s in site.slices if s.gated]
        return list(dict.fromkeys([*self.structure.matrices, *gated]))

    def block(self, block: Block, seen: Seen) -> dict[str, Tensor]:
        return {site.name: self.pruner.importance(self.net, site, seen) for site in block.sites}

    def add(self, found: Mapping[str, Tensor]) -> None:
        self.found.update({name: tensor.cpu() for name, tensor in found.items()})
        if self.at_once and isinstance(self.options, CalibratedOptions):
            for name in found:
                silence(self.net, self.structure.site(name), self._uniform(name))

    def _uniform(self, name: str) -> Tensor:
        ratio = self.ratios[next(iter(self.structure.site(name).matrices))]
        if ratio == 0:
            return torch.arange(len(self.found[name]))
        return allocation.uniform({name: self.found[name]}, ratio, self.options.multiple_of)[name]

    def finish(self) -> None:
        if not self.options.over_towers:
            return self.job.cut({name: self._uniform(name) for name in self.found}, self.structure)
        keep: Kept = {}
        for part, ratio in self.groups():
            keep.update(self._unified(part, ratio))
        return self.job.cut(keep, self.structure)

    def _unified(self, part: Structure, ratio: float) -> Kept:
        importance = {site.name: self.found[site.name] for site in part.sites}
        if ratio == 0:
            return {name: torch.arange(len(one)) for name, one in importance.items()}
        return ranked_units(part, importance, ratio, self.options.multiple_of, additive=self.pruner.additive)


def silence(net: nn.Module, site: Site, kept: Tensor) -> None:
    """Zeros where the gates of all units but `kept` act: the site computes as if they were cut."""
    away = torch.ones(site.units, dtype=torch.bool)
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


def unit_importance(site: Site, score: Any, *, additive: bool = False) -> Tensor:
    """(units,) norm, or sum, of the scores (name -> matrix) of the matrix entries that a unit owns."""
    total = torch.zeros(site.units)
    for part in site.slices:
        if len(part.shape) > 1:
            own = score(part.param).cpu().float()
            total += (own if additive else own.square()).sum(1 - part.dim)[part.index].sum(1)
    return total if additive else total.sqrt()


def _weight(net: nn.Module, name: str) -> Tensor:
    """At least in single precision."""
    weight = net.get_parameter(name).detach()
    return weight if weight.dtype == torch.float64 else weight.float()


def refuse_widths(shapes: Mapping[str, tuple[int, ...]], n: int, m: int) -> None:
    """Raise UserError naming the matrices whose width has no n:m pattern, before anything is changed."""
    wrong = [f"{name} ({shape[1]} columns)" for name, shape in shapes.items() if shape[1] % m]
    if wrong:
        raise UserError(f"sparsity={n}:{m} needs widths divisible by {m}; these are not: {', '.join(wrong[:5])}.")


class UnitOptions(PruneOptions):
    """Options of one-shot structured pruners by score."""

    allocation: Literal["uniform", "unified"] = Field(
        "uniform",
        description="uniform: every site loses the same fraction; unified: one ranking over all units",
    )
    multiple_of: int = Field(1, ge=1, description="round kept widths to a multiple of this (8 suits GPU kernels)")


class UnitPruner(Method):
    """Removes the units with the lowest score, a unit's score being the norm of its weights' scores."""

    Options = UnitOptions

    @abstractmethod
    def score(self, weight: Tensor) -> Tensor:
        """(out, in) -> (out, in): the importance of each weight, larger = more important."""

    def apply(self, job: Job) -> None:
        options: UnitOptions = self.options
        structure = job.structure
        importance = {site.name: self.importance(job, site) for site in structure.sites}
        if options.allocation == "uniform":
            keep = allocation.uniform(importance, options.fraction, options.multiple_of)
        else:
            keep = ranked_units(structure, importance, options.fraction, options.multiple_of, additive=False)
        job.cut(keep)

    def importance(self, job: Job, site: Site) -> Tensor:
        """(units,) root of the summed squared scores of the matrix entries that a unit owns."""
        return unit_importance(site, lambda name: self.score(_weight(job.model.net, name)))
