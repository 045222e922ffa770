"""Pruners that are one formula: the file of the method says score(), everything else is here."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..calibration.activations import remove_left
from ..calibration.blocks import block_statistics
from ..calibration.gradients import gradients
from ..calibration.statistics import Statistics
from ..calibration.walk import AtOnce, BlockByBlock, Looking, Seen, Walk
from ..compression.masks import Keep
from ..disk.storage import digest
from ..errors import UserError
from ..job import Job
from ..method import Method
from ..options import PruneOptions
from ..structure import Site, Structure
from ..tensors.checkpoint import CheckpointStore
from . import allocation
from .decisions import (
    CutDecisions,
    Decisions,
    MaskDecisions,
    checked_score,
    ranked_parts,
    ranked_units,
    refuse_units,
    unit_importance,
    weight_of,
)
from .ecoflap import block_ratios, first_order, numbers_apart, seeds_from, zeroth_order
from .modality import tower_ratios
from .options import CalibratedOptions, GradientOptions, SampledOptions, ScoreOptions
from .owl import met, outliers, owl

__all__ = [
    "CalibratedOptions", "GradientOptions", "Reconstructor", "SampledOptions", "ScoreOptions", "ScorePruner",
    "UnitOptions", "UnitPruner", "WholeHeads", "refuse_widths", "unit_importance",
]  # fmt: skip

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
    # Means and variances of the inputs, which are of one worker's samples: not for a method that is `parallel`.
    moments: ClassVar[bool] = False
    parallel: ClassVar[bool] = True

    def units(self, structure: Structure) -> Structure:
        """The structure with the units that are removed."""
        return structure

    @abstractmethod
    def score(self, weight: Tensor, statistics: Statistics | None) -> Tensor:
        """(out, in) -> (out, in): the importance of each weight, larger = more important."""

    def importance(self, net: nn.Module, site: Site, seen: Seen) -> Tensor:
        """(units,) importance of a site's units from the scores of what they own: the norm, or the sum."""
        return unit_importance(
            site, lambda name: self._checked(name, weight_of(net, name), seen.get(name)), additive=self.additive
        )

    def prune(self, weight: Tensor, statistics: Statistics | None, keep: Keep) -> dict[str, Tensor]:
        """{"mask": (out, in)}, and {"weight": (out, in)} where what stays is changed too."""
        return {"mask": keep(self._checked("a matrix", weight, statistics))}

    def _checked(self, name: str, weight: Tensor, statistics: Statistics | None) -> Tensor:
        return checked_score(self.name, name, self.score(weight, statistics), weight.shape)

    def check(self, structure: Structure) -> None:
        """Raise UserError for a pattern that the method does not make, towers that are not there or cannot give what
        is asked of them, by their ratios or with one unit left a site, and widths without the n:m pattern."""
        options: ScoreOptions = self.options
        structure = self.units(structure)
        if options.pattern not in self.patterns:
            raise UserError(
                f"{self.name} does not make pattern={options.pattern}: it makes {', '.join(self.patterns)}."
            )
        towers = tower_ratios(structure, options)
        if options.n_m is not None:
            pruned = Structure(tuple(t for t in structure.towers if towers[t.name] > 0))
            refuse_widths(pruned.matrices, *options.n_m)
        if options.pattern == "structured" and options.over_towers:
            for part, ratio in ranked_parts(structure, options, towers):
                refuse_units(part, ratio)

    def apply(self, job: Job) -> None:
        options: ScoreOptions = self.options
        self.check(job.changes.structure)
        structure = self.units(job.changes.structure)
        towers = tower_ratios(structure, options)
        job.model.net.eval()
        ratios = self._ratios(job, structure, towers)
        kind = CutDecisions if options.pattern == "structured" else MaskDecisions
        decisions = kind(self, job, structure, towers, ratios)
        for step in self._walk(job, structure, decisions):
            decisions.add(step.decided(decisions.of_block))
        decisions.finish()

    # Ratios and data -----------------------------------------------------------------------------------------------

    def _ratios(self, job: Job, structure: Structure, towers: Mapping[str, float]) -> dict[str, float]:
        """Matrix -> the ratio that goes, by tower or by block. Those by block are on disk before anything is pruned: by
        differences of the loss they are the dearest part, and a run that goes on does not look for them again."""
        options: ScoreOptions = self.options
        if isinstance(options, SampledOptions) and options.allocation != "uniform":
            store = self._store(job, "ratios", "allocation")
            if (state := store.load()) is not None:
                ratios: dict[str, float] = state[2]
            else:
                with numbers_apart(job.model.device):  # what follows draws the same, found or read
                    by_block = self._owl if options.allocation == "owl" else self._ecoflap
                    ratios = by_block(job, structure, options)
                store.save(0, {}, ratios)
            job.changes.state.log.setdefault(self.name, {})["ratios"] = {n: round(r, 6) for n, r in ratios.items()}
            return ratios
        return {n: towers[t.name] for t in structure.towers for n in Structure((t,)).matrices}

    def _ecoflap(self, job: Job, structure: Structure, options: SampledOptions) -> dict[str, float]:
        count = min(options.allocation_samples, options.calibration_samples)
        batches = job.data.calibration(count, ECOFLAP_BATCH)
        losses = [partial(job.loss, batch) for batch in batches]
        net, names = job.model.net, list(structure.matrices)
        if options.allocation == "ecoflap":
            sizes = [len(batch.samples) for batch in batches]
            scores = first_order(net, names, list(zip(losses, sizes, strict=True)), job.here.world)
        else:
            scores = zeroth_order(
                net, names, losses, seeds_from(job.here.seed),
                progress=lambda done, total: job.here.progress("allocate", done, total, ""), world=job.here.world,
            )  # fmt: skip
        return block_ratios(structure, scores, options.fraction, code=options.group == "code")

    def _owl(self, job: Job, structure: Structure, options: SampledOptions) -> dict[str, float]:
        """From the dense model's stream."""
        net = job.model.net
        batches = job.data.calibration(min(options.allocation_samples, options.calibration_samples), 1)
        runs = [partial(job.loss, batch) for batch in batches]
        percent: list[float] = []
        blocks: list[list[str]] = []
        for block, statistics in block_statistics(net, structure, runs, propagate="dense"):
            names = list(dict.fromkeys(name for site in block.sites for name in site.matrices))
            scores = [weight_of(net, n).abs() * statistics[n].norm.to(weight_of(net, n).dtype) for n in names]
            percent.append(outliers(scores, options.owl_multiple))
            blocks.append(names)
        ratios = owl(percent, options.fraction, options.owl_span)
        by_matrix = {name: ratio for names, ratio in zip(blocks, ratios, strict=True) for name in names}
        if options.group == "code":
            return by_matrix
        return met(by_matrix, {n: torch.Size(s).numel() for n, s in structure.matrices.items()}, options.fraction)

    def _walk(self, job: Job, structure: Structure, decisions: Decisions) -> Walk:
        """The walk that the options ask for: which inputs, or gradients, the score is told."""
        options = self.options
        if isinstance(options, CalibratedOptions):
            return self._block_by_block(job, structure, options)
        if isinstance(options, GradientOptions):
            return AtOnce(structure, self._gradients(job, decisions.parameters(), options))
        return AtOnce(structure, {})

    def _gradients(self, job: Job, parameters: list[str], options: GradientOptions) -> Seen:
        batches = job.data.calibration(options.calibration_samples, options.samples_a_gradient(compared=job.compares()))
        self._log_samples(job, batches)
        return gradients(
            job.model.net, parameters, [(partial(job.loss, b), len(b.samples)) for b in batches],
            dtype=getattr(torch, options.statistics),
            progress=lambda done, total: job.here.progress("gradients", done, total, ""), world=job.here.world,
        )  # fmt: skip

    def _block_by_block(self, job: Job, structure: Structure, options: CalibratedOptions) -> Walk:
        folder = job.here.folder / "checkpoint" / self.name
        if job.here.world.leads:
            remove_left(folder)
        job.here.world.barrier(f"{self.name} calibrates")
        batches = job.data.calibration(options.calibration_samples, 1)
        self._log_samples(job, batches)
        return BlockByBlock(
            job.model.net, structure, [partial(job.loss, batch) for batch in batches],
            [job.model.image_tokens(batch) for batch in batches],
            Looking(options.calibration_samples, self.gram, options.statistics, options.propagate, self.moments),
            store=lambda number, path: self._store(job, f"{number:04d}", path), folder=folder, world=job.here.world,
            shared=job.here.shared, progress=partial(job.here.progress, "calibrate"),
        )  # fmt: skip

    def _store(self, job: Job, name: str, what: str) -> CheckpointStore:
        return job.here.store(self.name, name, every_seconds=0.0, block=what)

    def _log_samples(self, job: Job, batches: list[Any]) -> None:
        log = job.changes.state.log.setdefault(self.name, {})
        ids = [sample.id for batch in batches for sample in batch.samples]
        log["calibration"] = {"samples": len(ids), "ids": digest(ids)[:12]}


class WholeHeads:
    """Mixed into a pruner by score whose units of attention are whole heads (groups of them, where they share a key),
    where a layer can lose them; elsewhere they are the layer's own."""

    def units(self, structure: Structure) -> Structure:
        return structure.with_units(_whole)


def _whole(site: Site) -> str:
    legal = {variant.unit for variant in (site, *site.variants)}
    return next((unit for unit in ("kv group", "head") if unit in legal), site.unit)


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

    def check(self, structure: Structure) -> None:
        """Raise UserError where the target cannot be met with one unit (or `multiple_of` of them) left a site."""
        options: UnitOptions = self.options
        refuse_units(structure, options.fraction, options.multiple_of)

    def apply(self, job: Job) -> None:
        options: UnitOptions = self.options
        structure = job.changes.structure
        importance = {site.name: self.importance(job, site) for site in structure.sites}
        if options.allocation == "uniform":
            keep = allocation.uniform(importance, options.fraction, options.multiple_of)
        else:
            keep = ranked_units(structure, importance, options.fraction, options.multiple_of, additive=False)
        job.changes.cut(keep)

    def importance(self, job: Job, site: Site) -> Tensor:
        """(units,) root of the summed squared scores of the matrix entries that a unit owns."""

        def score(name: str) -> Tensor:
            weight = weight_of(job.model.net, name)
            return checked_score(self.name, name, self.score(weight), weight.shape)

        return unit_importance(site, score)
