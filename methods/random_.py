"""Random pruning: what a method is worth beyond the sparsity itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlbench.calibration.statistics import Statistics
from vlbench.method import method
from vlbench.pruning.scoring import ScorePruner
from vlbench.structure import Site


@method(
    "random",
    title="Random",
    role="pruner",
    patterns=("unstructured", "n:m", "structured"),
    version=2,
    uses_seed=True,
)
class Random(ScorePruner):
    """score = a uniform random number of the cell's seed, for a weight or for a unit."""

    reads_data = False
    additive = True  # numbers of one distribution: divided by the sizes of units, all of an attention's would go first

    def score(self, weight: Tensor, statistics: Statistics | None) -> Tensor:
        return torch.rand(weight.shape).to(weight.device)  # drawn on the host: one result on every device

    def importance(self, net: nn.Module, site: Site, seen: object) -> Tensor:
        return torch.rand(site.units)
