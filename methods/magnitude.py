"""Magnitude pruning (Han et al. 2015, arXiv 1506.02626): the smallest weights become zero."""

from __future__ import annotations

from torch import Tensor

from vlbench.calibration.statistics import Statistics
from vlbench.method import method
from vlbench.pruning.scoring import ScorePruner


@method(
    "magnitude",
    title="Magnitude",
    role="pruner",
    patterns=("unstructured", "n:m", "structured"),
    paper="https://arxiv.org/abs/1506.02626",
)
class Magnitude(ScorePruner):
    """score = |W|, compared within a matrix unless `group` says otherwise; a unit counts by the norm of its weights."""

    recipes = {"wanda-code": {"group": "matrix", "rule": "<="}}  # noqa: RUF012

    def score(self, weight: Tensor, statistics: Statistics | None) -> Tensor:
        return weight.abs()
