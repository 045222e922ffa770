"""Optimal brain damage (LeCun et al. 1989) with the diagonal of the empirical Fisher matrix for the Hessian's."""

from __future__ import annotations

from torch import Tensor

from vlbench.calibration.statistics import Statistics
from vlbench.method import method
from vlbench.pruning.scoring import GradientOptions, ScorePruner


@method(
    "obd",
    title="OBD (diagonal Fisher)",
    role="pruner",
    patterns=("unstructured", "n:m", "structured"),
    uses_seed=True,
    paper="https://proceedings.neurips.cc/paper/1989/hash/6c9882bbac1c7093bd25041881277658-Abstract.html",
)
class OBD(ScorePruner):
    """score = W^2 * mean of (dL/dW)^2 over seeded training samples, one sample a gradient (gradient_batch=1: a larger
    batch is faster, and its squares are those of the batch's mean; retrieval, whose loss compares the samples of a
    batch, has none for one alone). A unit counts by the sum of what it owns."""

    Options = GradientOptions
    additive = True

    def score(self, weight: Tensor, statistics: Statistics | None) -> Tensor:
        assert statistics is not None
        assert statistics.gradient_square is not None
        # In the precision of the sums: squares of small gradients fall below the smallest single-precision number.
        return weight.to(statistics.gradient_square.dtype).square() * statistics.gradient_square
