"""Pruners that are one formula: the file of the method says score(), everything else is here."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..errors import UserError
from ..job import Job
from ..method import Method, PruneOptions
from ..structure import Block, Site
from . import allocation
from .calibration import Statistics, calibrate
from .masks import apply_masks, keep_fraction, keep_n_of_m


class ScoreOptions(PruneOptions):
    """Options of unstructured and n:m pruners by score."""

    group: Literal["row", "matrix", "model"] = Field(
        "matrix", description="which weights are compared: a row, a matrix, or all matrices of the model"
    )


class CalibratedOptions(ScoreOptions):
    """Options of pruners whose score needs the inputs of the matrices."""

    group: Literal["row", "matrix", "model"] = "row"
    calibration_samples: int = Field(128, ge=1, description="training samples whose activations are seen")
    propagate: Literal["pruned", "dense"] = Field(
        "pruned", description="what the next block sees: the pruned block's output, or the dense one's"
    )

    @model_validator(mode="after")
    def _one_pass(self) -> CalibratedOptions:
        if self.group == "model" and self.propagate == "pruned":
            raise ValueError("group=model ranks after all blocks were seen: add propagate=dense")
        return self


class ScorePruner(Method):
    """Zeros for the weights with the lowest score, unstructured or n:m. A subclass whose Options are calibrated gets
    the statistics of its matrix's inputs, block by block; others get none."""

    Options: ClassVar[type[ScoreOptions]] = ScoreOptions

    @abstractmethod
    def score(self, weight: Tensor, statistics: Statistics | None) -> Tensor:
        """(out, in) -> (out, in): the importance of each weight, larger = more important."""

    def apply(self, job: Job) -> None:
        options: ScoreOptions = self.options
        shapes = job.structure.matrices
        if options.n_m is not None:
            refuse_widths(shapes, *options.n_m)
        if isinstance(options, CalibratedOptions):
            scores = self._calibrated(job, options)
        else:
            scores = {name: self.score(_weight(job, name), None) for name in shapes}
        if options.group == "model" and options.n_m is None:
            job.mask(_keep_over_model(scores, options.fraction), "unstructured")
        else:
            job.mask({name: self._keep(score) for name, score in scores.items()}, self._pattern)

    @property
    def _pattern(self) -> str:
        return str(self.options.sparsity) if self.options.n_m else "unstructured"

    def _keep(self, score: Tensor) -> Tensor:
        options: ScoreOptions = self.options
        if options.n_m is not None:
            return keep_n_of_m(score, *options.n_m)
        return keep_fraction(score, options.fraction, "row" if options.group == "row" else "matrix")

    def _calibrated(self, job: Job, options: CalibratedOptions) -> dict[str, Tensor]:
        """Scores of all matrices; with propagate=pruned each block is already masked when the next one is seen."""
        scores: dict[str, Tensor] = {}

        def prune(block: Block, statistics: Mapping[str, Statistics]) -> None:
            for name, seen in statistics.items():
                scores[name] = self.score(_weight(job, name), seen)
            if options.propagate == "pruned":
                apply_masks(job.model.net, {name: self._keep(scores[name]) for name in statistics})

        job.model.net.eval()
        samples = job.calibration(options.calibration_samples, 1)
        runs = [partial(job.loss, batch) for batch in samples]
        calibrate(
            job.model.net, job.structure, runs, prune, propagate=options.propagate,
            progress=lambda done, total: job.progress("calibrate", done, total),
        )  # fmt: skip
        return scores


def _weight(job: Job, name: str) -> Tensor:
    return job.model.net.get_parameter(name).detach().float()


def refuse_widths(shapes: Mapping[str, tuple[int, ...]], n: int, m: int) -> None:
    """Raise UserError naming the matrices whose width has no n:m pattern, before anything is changed."""
    wrong = [f"{name} ({shape[1]} columns)" for name, shape in shapes.items() if shape[1] % m]
    if wrong:
        raise UserError(f"sparsity={n}:{m} needs widths divisible by {m}; these are not: {', '.join(wrong[:5])}.")


def _keep_over_model(scores: dict[str, Tensor], fraction: float) -> dict[str, Tensor]:
    joined = torch.cat([s.flatten() for s in scores.values()])[None]
    keep = keep_fraction(joined, fraction)[0].split([s.numel() for s in scores.values()])
    return {name: part.view_as(scores[name]) for name, part in zip(scores, keep, strict=True)}


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
        sites = job.structure.sites
        importance = {site.name: self.importance(job, site) for site in sites}
        if options.allocation == "uniform":
            keep = allocation.uniform(importance, options.fraction, options.multiple_of)
        else:
            # Norms of sites differ with their sizes: comparable as a mean square of the unit's entries.
            importance = {s.name: importance[s.name] / s.entries_per_unit**0.5 for s in sites}
            cost = {site.name: float(site.entries_per_unit) for site in sites}
            keep = allocation.unified(importance, cost, options.fraction, options.multiple_of)
        job.cut(keep)

    def importance(self, job: Job, site: Site) -> Tensor:
        """(units,) root of the summed squared scores of the matrix entries that a unit owns."""
        total = torch.zeros(site.units)
        for part in site.slices:
            if len(part.shape) > 1:
                score = self.score(job.model.net.get_parameter(part.param).detach().float()).cpu()
                total += score.square().sum(1 - part.dim)[part.index].sum(1)
        return total.sqrt()
