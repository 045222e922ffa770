"""FLAP (An et al. 2024, arXiv 2312.11983): heads and neurons whose output hardly changes, and a bias for what goes.

    x: inputs of an attention's or feed-forward layer's last projection W; m: their mean, f: how much they fluctuate
    score of input j:  WIFV f_j sum_i W_ij^2     IFV f_j     WIFN mean_i |W_ij| ||x_j||
    a unit: the mean over its inputs of the score (of attention: its square), standardised within each layer
    what is removed leaves its mean behind:  b <- b + W (m * removed)

f is the inputs' variance over all tokens. The published code puts another number in its place (calibration/moments.py),
counts a head of width d as int(4 d / 3) neurons whatever the matrices are, and compares scores with a threshold:
compat=original does the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vlbench.calibration.statistics import Statistics
from vlbench.calibration.walk import Seen
from vlbench.compression.cut import Kept
from vlbench.job import Job
from vlbench.method import method
from vlbench.pruning import allocation
from vlbench.pruning.decisions import checked_score, refuse_units, weight_of
from vlbench.pruning.scoring import CalibratedOptions, ScorePruner, WholeHeads
from vlbench.structure import Block, Site, Slice, Structure


class FlapOptions(CalibratedOptions):
    """Structured only. The blocks see the dense model's outputs, as in the published code."""

    pattern: Literal["structured"] = "structured"
    propagate: Literal["pruned", "dense"] = "dense"
    calibration_samples: int = 128
    metric: Literal["WIFV", "IFV", "WIFN"] = Field("WIFV", description="the score of an input, see the formulas")
    spread: Literal["AL-AM", "UL-UM"] = Field(
        "AL-AM", description="AL-AM: one ranking over all layers; UL-UM: every layer loses the same fraction"
    )
    bias: bool = Field(True, description="add what the removed units give on average to the projection's bias")
    compat: Literal["paper", "original"] = Field(
        "paper", description="original: the fluctuation, the cost of a head and the threshold of the published code"
    )


@method(
    "flap",
    title="FLAP: units whose output hardly fluctuates, and biases for their means",
    role="pruner",
    patterns=("structured",),
    uses_seed=True,
    paper="https://arxiv.org/abs/2312.11983",
)
class Flap(WholeHeads, ScorePruner):
    """Whole heads (where a layer has them) and neurons. Nothing is trained."""

    Options = FlapOptions
    moments = True
    parallel = False

    def check(self, structure: Structure) -> None:
        super().check(structure)
        if self.options.spread == "AL-AM" and self.options.compat == "paper":
            refuse_units(self.units(structure), self.options.fraction, self.options.multiple_of)

    def score(self, weight: Tensor, statistics: Statistics | None) -> Tensor:
        """(in,): of the inputs."""
        assert statistics is not None
        assert statistics.moments is not None
        options: FlapOptions = self.options
        if options.metric == "WIFN":
            return weight.abs().mean(0) * statistics.norm.to(weight.dtype)
        moments = statistics.moments
        paper = options.compat == "paper"
        fluctuation = moments.variance(statistics.square_sum) if paper else moments.fluctuation
        return fluctuation.to(weight.dtype) * (weight.square().sum(0) if options.metric == "WIFV" else 1)

    def apply(self, job: Job) -> None:
        options: FlapOptions = self.options
        self.check(job.changes.structure)
        structure, net = self.units(job.changes.structure), job.model.net
        net.eval()
        taken: dict[str, Tensor] = {}
        for step in self._block_by_block(job, structure, options):
            decision = step.decided(lambda block, seen: self.of_block(net, block, seen))
            taken.update({name: tensor.cpu() for name, tensor in decision.items()})
        importance = {site.name: standardised(site, taken[f"score/{site.name}"]) for site in structure.sites}
        keep = self.kept(structure, importance)
        if options.bias:
            job.changes.add_biases(self.biases(net, structure, keep, taken))
        job.changes.cut(keep, structure)

    def of_block(self, net: nn.Module, block: Block, seen: Seen) -> dict[str, Tensor]:
        """score/SITE and mean/SITE: (in,) of its last projection."""
        decision: dict[str, Tensor] = {}
        for site in block.sites:
            name = read_by(site).param
            statistics, weight = seen[name], weight_of(net, name)
            assert statistics is not None
            assert statistics.moments is not None
            scores = self.score(weight, statistics)
            decision[f"score/{site.name}"] = checked_score(self.name, name, scores, (weight.shape[1],))
            decision[f"mean/{site.name}"] = statistics.moments.mean
        return decision

    def kept(self, structure: Structure, importance: Mapping[str, Tensor]) -> Kept:
        """importance: site -> (units,), standardised."""
        options: FlapOptions = self.options
        original = options.compat == "original"
        if options.spread == "UL-UM":
            if original:
                return {n: at_least(s, s.sort().values[int(len(s) * options.fraction)]) for n, s in importance.items()}
            return allocation.uniform(importance, options.fraction, options.multiple_of)
        if original:
            cost = {s.name: published_cost(s) for s in structure.sites}
            return above_threshold(importance, cost, options.fraction)
        cost = {site.name: float(site.entries_per_unit) for site in structure.sites}
        return allocation.unified(importance, cost, options.fraction, options.multiple_of)

    def biases(
        self, net: nn.Module, structure: Structure, keep: Kept, means: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Linear -> (rows,) W (m * removed)."""
        biases: dict[str, Tensor] = {}
        for site in structure.sites:
            part = read_by(site)
            away = torch.ones(site.units, dtype=torch.bool)
            away[keep[site.name]] = False
            columns = part.index[away].flatten()
            weight = weight_of(net, part.param)
            mean = means[f"mean/{site.name}"].to(weight)[columns.to(weight.device)]
            biases[part.param.removesuffix(".weight")] = weight[:, columns.to(weight.device)] @ mean
        return biases


def read_by(site: Site) -> Slice:
    """The columns of the projection that reads the site's units."""
    return next(part for part in site.slices if part.dim == 1)


def standardised(site: Site, score: Tensor) -> Tensor:
    """(in,) scores of inputs -> (units,): of attention squared first, then zero mean and unit variance in the layer."""
    score = score.square() if site.kind == "attention" else score
    score = (score - score.mean()) / score.std()
    return score.nan_to_num()[read_by(site).index].mean(1)


def published_cost(site: Site) -> float:
    """Of a unit, in neurons: a head of width d counts as 4 d / 3 of them, rounded down."""
    return float(4 * read_by(site).index.shape[1] // 3) if site.kind == "attention" else 1.0


def at_least(score: Tensor, threshold: Tensor) -> Tensor:
    return (score >= threshold).nonzero().flatten()


def above_threshold(importance: Mapping[str, Tensor], cost: Mapping[str, float], fraction: float) -> Kept:
    """Of all units by falling score, those before the one at which the kept cost is nearest to 1 - fraction of all."""
    score = torch.cat(list(importance.values()))
    price = torch.cat([torch.full((len(s),), cost[name], dtype=torch.float64) for name, s in importance.items()])
    order = score.sort(descending=True).indices
    kept = price[order].cumsum(0)
    threshold = score[order][int((kept - float(price.sum()) * (1 - fraction)).abs().argmin())]
    return {name: (one > threshold).nonzero().flatten() for name, one in importance.items()}
