"""Structured magnitude with a uniform allocation: every site keeps the same fraction of its units."""

from __future__ import annotations

from torch import Tensor

from vlbench.method import method
from vlbench.pruning.scoring import UnitPruner


@method(
    "uniform",
    title="Uniform structured magnitude",
    role="pruner",
    patterns=("structured",),
    paper="https://arxiv.org/abs/1608.08710",
)
class Uniform(UnitPruner):
    """score = |W|; a unit counts by the L2 norm of what it owns (Li et al. 2017). The plainest structured baseline:
    no data, no training, no choice between sites."""

    def score(self, weight: Tensor) -> Tensor:
        return weight.abs()
