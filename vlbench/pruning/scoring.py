"""Pruners that are one formula: the file of the method says score(), everything else is here."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..errors import UserError
from ..job import Job
from ..method import Method, PruneOptions
from ..structure import Site
from . import allocation
from .masks import Group, keep_fraction, keep_n_of_m


class ScoreOptions(PruneOptions):
    """Options of unstructured and n:m pruners by score."""

    group: Literal["row", "matrix", "model"] = Field(
        "matrix", description="which weights are compared: a row, a matrix, or all matrices of the model"
    )


class ScorePruner(Method):
    """Zeros for the weights with the lowest score, unstructured or n:m."""

    Options = ScoreOptions

    @abstractmethod
    def score(self, weight: Tensor) -> Tensor:
        """(out, in) -> (out, in): the importance of each weight, larger = more important."""

    def apply(self, job: Job) -> None:
        options: ScoreOptions = self.options
        scores = {name: self.score(weight) for name, weight in self._matrices(job)}
        if options.n_m is not None:
            n, m = options.n_m
            refuse_widths(scores, n, m)
            job.mask({name: keep_n_of_m(score, n, m) for name, score in scores.items()}, f"{n}:{m}")
        elif options.group == "model":
            job.mask(_keep_over_model(scores, options.fraction), "unstructured")
        else:
            group: Group = options.group
            keep = {name: keep_fraction(score, options.fraction, group) for name, score in scores.items()}
            job.mask(keep, "unstructured")

    def _matrices(self, job: Job) -> Iterator[tuple[str, Tensor]]:
        names = list(job.structure.matrices)
        for i, name in enumerate(names):
            yield name, job.model.net.get_parameter(name).detach().float()
            job.progress("scores", i + 1, len(names))


def refuse_widths(scores: dict[str, Tensor], n: int, m: int) -> None:
    """Raise UserError naming the matrices whose width has no n:m pattern, before anything is changed."""
    wrong = [f"{name} ({score.shape[1]} columns)" for name, score in scores.items() if score.shape[1] % m]
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
