"""First-order Taylor pruning (Molchanov et al. 2019, arXiv 1906.10771): what a weight's removal changes in the loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlbench.calibration.statistics import Statistics
from vlbench.method import method
from vlbench.pruning.scoring import GradientOptions, ScorePruner
from vlbench.structure import Site


class TaylorOptions(GradientOptions):
    """The gradient is that of the samples' mean loss: how many a backward pass takes changes no more than rounding,
    unless the loss compares the samples of a batch (retrieval)."""

    gradient_batch: int | None = 16


@method(
    "taylor",
    title="First-order Taylor",
    role="pruner",
    patterns=("unstructured", "n:m", "structured"),
    uses_seed=True,
    paper="https://arxiv.org/abs/1906.10771",
)
class Taylor(ScorePruner):
    """score = |W * dL/dW| over seeded training samples. A unit's is |sum of W * dL/dW| over what its gate would
    multiply: the derivative of the loss by that gate, at 1."""

    Options = TaylorOptions
    additive = True

    def score(self, weight: Tensor, statistics: Statistics | None) -> Tensor:
        assert statistics is not None
        assert statistics.gradient is not None
        return (weight * statistics.gradient.to(weight.dtype)).abs()

    def importance(self, net: nn.Module, site: Site, seen: dict[str, Statistics]) -> Tensor:  # type: ignore[override]
        total = torch.zeros(site.units, dtype=torch.float64)
        for part in site.slices:
            gradient = seen[part.param].gradient if part.gated else None
            if gradient is not None:
                moved = net.get_parameter(part.param).detach().double() * gradient.double()
                total += moved.reshape(len(moved), -1).sum(1).cpu()[part.index].sum(1)
        return total.abs()
