"""LLM-Pruner (Ma et al. 2023, arXiv 2305.11627): grouped Taylor importance of coupled structures.

    salience S = W G (first), W H W (second), W G - W H W / 2 (mixed)       G: mean gradient, H: mean squared gradient
    matrix importance of a unit = sum of |S| over the rows or columns it owns (vectorised: |sum of W G|)
    unit importance = sum (mean, max, product, first) over the matrices of its group

mode=channel removes dimensions of the residual streams: the group of one is all that reads or writes it, and every
stream keeps the same share.

A unit's group is all that goes with it: rows of the projections that make it and columns of the one that reads it. Only
what the unit's removal takes away counts, as in the original; the plain `taylor` counts gated rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vlbench.calibration.statistics import Statistics
from vlbench.calibration.walk import Seen
from vlbench.compression.cut import Kept
from vlbench.compression.width import choose_width, key_of_width, stream_of
from vlbench.job import Job
from vlbench.method import method
from vlbench.options import later
from vlbench.pruning.modality import tower_ratios
from vlbench.pruning.scoring import GradientOptions, ScorePruner, WholeHeads
from vlbench.structure import Site, Stream, Structure, Tower

# taylor -> (W, G, H) -> salience of every weight
SALIENCE: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "vectorize": lambda w, g, h: w * g,
    "param_first": lambda w, g, h: w * g,
    "param_second": lambda w, g, h: w * h * w,
    "param_mix": lambda w, g, h: w * g - 0.5 * w * h * w,
}
# (matrices, rows) -> (rows,)
REDUCTION: Mapping[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda m: m.sum(0),
    "mean": lambda m: m.mean(0),
    "max": lambda m: m.amax(0),
    "prod": lambda m: m.prod(0),
    "first": lambda m: m[0],
}


class LlmPrunerOptions(GradientOptions):
    """The published run: 10 samples, each its own backward pass, param_first, sum."""

    pattern: Literal["structured"] = "structured"
    calibration_samples: int = 10
    taylor: Literal["vectorize", "param_first", "param_second", "param_mix"] = Field(
        "param_first", description="vectorize: |sum W G|; param_first: sum |W G|; param_second: sum |W H W|; param_mix"
    )
    grouping: Literal["sum", "mean", "max", "prod", "first"] = Field(
        "sum", description="how the matrices of a unit's group are put together"
    )
    mode: Literal["block", "channel"] = later(
        "block", description="block: heads and neurons; channel: dimensions of the residual streams"
    )


@method(
    "llm_pruner",
    title="LLM-Pruner: grouped Taylor importance",
    role="pruner",
    patterns=("structured",),
    uses_seed=True,
    paper="https://arxiv.org/abs/2305.11627",
)
class LlmPruner(WholeHeads, ScorePruner):
    """Whole heads (where a layer has them) and neurons, the same fraction of every site."""

    Options = LlmPrunerOptions
    additive = True

    def check(self, structure: Structure) -> None:
        super().check(structure)
        if self.options.mode == "channel":
            towers = self._towers(structure)
            self._channels(structure, {t.name: torch.arange(stream_of(t).width).float() for t in towers})

    def apply(self, job: Job) -> None:
        if self.options.mode == "block":
            super().apply(job)
            return
        structure, net = job.changes.structure, job.model.net
        self.check(structure)
        net.eval()
        towers = {tower.name: stream_of(tower) for tower in self._towers(structure)}
        names = [s.param for stream in towers.values() for s in stream.slices if len(s.shape) > 1]
        gradients = self._gradients(job, list(dict.fromkeys(names)), self.options)
        importance = {name: self._of_stream(net, stream, gradients) for name, stream in towers.items()}
        job.changes.cut(self._channels(structure, importance), structure)

    def _towers(self, structure: Structure) -> list[Tower]:
        ratios = tower_ratios(structure, self.options)
        return [tower for tower in structure.towers if ratios[tower.name] > 0]

    def _channels(self, structure: Structure, importance: Mapping[str, Tensor]) -> Kept:
        """importance: tower -> (width,). Where towers have one ratio their streams keep one share, which meets the
        target; else each meets its own."""
        options: LlmPrunerOptions = self.options
        ratios = tower_ratios(structure, options)
        together = len(set(ratios.values())) == 1
        keep: Kept = {}
        for part in [structure] if together else [Structure((t,)) for t in self._towers(structure)]:
            by_tower = {key_of_width(t): importance[t.name] for t in part.towers}
            keep |= choose_width(part, by_tower, ratios[part.towers[0].name], options.multiple_of)
        return keep

    def _of_stream(self, net: nn.Module, stream: Stream, seen: Seen) -> Tensor:
        """(width,) importance of a stream's dimensions over all matrices that own them."""
        parts: list[Tensor] = []
        for part in (part for part in stream.slices if len(part.shape) > 1):
            scores = self.score(net.get_parameter(part.param).detach().double(), seen[part.param])
            rows = scores.movedim(part.dim, 0).flatten(1)
            parts.append(per_row(rows, 0, signed=self.options.taylor == "vectorize").cpu()[part.index].sum(1))
        return REDUCTION[self.options.grouping](torch.stack(parts))

    def score(self, weight: Tensor, statistics: Statistics | None) -> Tensor:
        assert statistics is not None
        assert statistics.gradient is not None
        assert statistics.gradient_square is not None
        mean, square = statistics.gradient.to(weight.dtype), statistics.gradient_square.to(weight.dtype)
        return SALIENCE[self.options.taylor](weight, mean, square)

    def importance(self, net: nn.Module, site: Site, seen: Seen) -> Tensor:
        parts: list[Tensor] = []
        for part in site.slices:
            if len(part.shape) > 1:
                scores = self.score(net.get_parameter(part.param).detach().double(), seen[part.param])
                parts.append(per_row(scores, part.dim, signed=self.options.taylor == "vectorize").cpu()[part.index])
        width = min(part.shape[1] for part in parts)
        # A fused projection has q, k and v in one slice, which are three matrices of the group.
        matrices = [chunk for part in parts for chunk in split(part, width)]
        return REDUCTION[self.options.grouping](torch.stack(matrices)).sum(1)


def per_row(salience: Tensor, dim: int, *, signed: bool) -> Tensor:
    """(out, in) salience -> importance of each row (dim 0) or column (dim 1)."""
    return salience.sum(1 - dim).abs() if signed else salience.abs().sum(1 - dim)


def split(rows: Tensor, width: int) -> list[Tensor]:
    """(units, k) -> parts of `width` rows a unit; where k is no multiple (grouped attention has more query rows than
    key rows), the rows are summed to that many."""
    if rows.shape[1] % width == 0:
        return list(rows.split(width, 1))
    return [rows.sum(1, keepdim=True).expand(-1, width) / width]
