"""Wanda (Sun et al. 2024, arXiv 2306.11695): weights that are small, or that meet small inputs, become zero."""

from __future__ import annotations

from torch import Tensor

from vlbench.calibration.statistics import Statistics
from vlbench.method import method
from vlbench.pruning.scoring import CalibratedOptions, ScorePruner


@method(
    "wanda",
    title="Wanda",
    role="pruner",
    patterns=("unstructured", "n:m", "structured"),
    uses_seed=True,
    paper="https://arxiv.org/abs/2306.11695",
)
class Wanda(ScorePruner):
    """score_ij = |W_ij| * ||X_j||_2, compared within a row; inputs from seeded training samples, block by block, each
    block seeing the pruned output of the one before. ECoFLaP is this with allocation=ecoflap-zeroth."""

    Options = CalibratedOptions
    # The published code: Wanda's for language models; RESSA's and ECoFLaP's copies of it, which compare whole matrices
    # of the vision tower with a threshold.
    recipes = {  # noqa: RUF012
        "wanda-code": {"group": "row", "rule": "exact", "propagate": "pruned"},
        "ressa-code": {"group": "code", "rule": "<", "propagate": "pruned"},
        "ecoflap-code": {"group": "code", "rule": "<=", "propagate": "pruned", "allocation": "ecoflap-zeroth"},
    }

    def score(self, weight: Tensor, statistics: Statistics | None) -> Tensor:
        assert statistics is not None
        return weight.abs().mul_(statistics.norm.to(weight.dtype))
