"""Wanda-sp (An et al. 2024, arXiv 2312.11983, the baseline of FLAP's repository): Wanda's score of whole structures.

    score of input j of the last projection = mean over its outputs i of |W_ij| * ||X_j||_2; a head: the sum over its j

(`wanda pattern=structured` takes a norm over all matrices of a unit: another method.)
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from vlbench.calibration.statistics import Statistics
from vlbench.calibration.walk import Seen
from vlbench.method import method
from vlbench.pruning.decisions import weight_of
from vlbench.pruning.scoring import CalibratedOptions, ScorePruner, WholeHeads
from vlbench.structure import Site


class WandaSpOptions(CalibratedOptions):
    """Structured only."""

    pattern: Literal["structured"] = "structured"


@method(
    "wanda_sp",
    title="Wanda-sp: Wanda's score of heads and neurons",
    role="pruner",
    patterns=("structured",),
    uses_seed=True,
    paper="https://arxiv.org/abs/2312.11983",
)
class WandaSp(WholeHeads, ScorePruner):
    """Looks at the output projection of each attention and feed-forward layer; every site loses the same fraction, and
    blocks see the pruned output of the one before. Nothing makes up for what goes."""

    Options = WandaSpOptions

    def score(self, weight: Tensor, statistics: Statistics | None) -> Tensor:
        assert statistics is not None
        return weight.abs() * statistics.norm.to(weight.dtype)

    def importance(self, net: nn.Module, site: Site, seen: Seen) -> Tensor:
        total = torch.zeros(site.units)
        for part in site.slices:
            if part.dim == 1:  # columns: of the projection that reads the units
                score = self.score(weight_of(net, part.param), seen.get(part.param))
                total += score.mean(0).cpu().float()[part.index].sum(1)
        return total
