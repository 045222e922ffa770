"""RIA (Zhang et al. 2024, ICLR, "Plug-and-play"): a weight's share of its row and of its column, and its input's norm.

score_ij = (|W_ij| / sum_k |W_kj| + |W_ij| / sum_k |W_ik|) * ||X_j||_2 ^ a
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from vlbench.calibration.statistics import Statistics
from vlbench.method import method
from vlbench.pruning.scoring import CalibratedOptions, ScorePruner


class RiaOptions(CalibratedOptions):
    """Compared within a row; the published code compares whole matrices unless told otherwise (recipe=ria-code)."""

    power: float = Field(0.5, ge=0, description="a: how much the norm of an input counts; 0: not at all")


@method(
    "ria",
    title="RIA: relative importance and activations",
    role="pruner",
    patterns=("unstructured", "n:m"),
    uses_seed=True,
    paper="https://openreview.net/forum?id=Tr0lPx9woF",
)
class Ria(ScorePruner):
    """Inputs come from seeded training samples, block by block, each block seeing the pruned output of the one before.
    The published permutation of columns for n:m is not applied: on a residual stream it would change the model."""

    Options = RiaOptions
    recipes = {"ria-code": {"group": "matrix", "rule": "<=", "propagate": "pruned"}}  # noqa: RUF012

    def score(self, weight: Tensor, statistics: Statistics | None) -> Tensor:
        assert statistics is not None
        size = weight.abs()
        relative = size / size.sum(0, keepdim=True) + size / size.sum(1, keepdim=True)
        score: Tensor = relative.nan_to_num_(0.0) * statistics.norm.to(weight.dtype) ** self.options.power
        return score
