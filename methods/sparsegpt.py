"""SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774): prune column by column, the rest makes up for the error."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from vlbench.calibration.statistics import Statistics
from vlbench.compression.masks import Keep
from vlbench.method import method
from vlbench.pruning.obs import sweep
from vlbench.pruning.scoring import CalibratedOptions, Reconstructor


class SparseGPTOptions(CalibratedOptions):
    """A group is a row, or all rows, of one block of columns."""

    pattern: Literal["unstructured"] = "unstructured"
    group: Literal["row", "matrix"] = "matrix"
    damp: float = Field(0.01, ge=0, description="added to the diagonal of X X^T, as a part of its mean")
    block: int = Field(128, ge=1, description="columns whose mask is chosen together, and updated together")


# SparseGPT's own code; Wanda's and RESSA's copies of it give the same bits.
CODE = {"group": "matrix", "rule": "<=", "damp": 0.01, "block": 128}


@method(
    "sparsegpt",
    title="SparseGPT",
    role="pruner",
    patterns=("unstructured", "n:m"),
    uses_seed=True,
    paper="https://arxiv.org/abs/2301.00774",
)
class SparseGPT(Reconstructor):
    """score_ij = W_ij^2 / U_jj^2 with U the upper Cholesky factor of (2 X X^T / n + damping)^-1, compared in blocks of
    columns; every pruned weight's error is spread over the columns to its right."""

    Options = SparseGPTOptions
    recipes = {  # noqa: RUF012
        "sparsegpt-code": CODE,
        "wanda-code": CODE,
        "ressa-code": CODE,
        "ecoflap-code": {**CODE, "allocation": "ecoflap-zeroth"},
    }

    def solve(self, weight: Tensor, statistics: Statistics, keep: Keep) -> tuple[Tensor, Tensor]:
        assert statistics.gram is not None
        options: SparseGPTOptions = self.options
        hessian = statistics.gram * (2 / max(1, statistics.samples))
        return sweep(weight, hessian, keep, damp=options.damp, block=options.block)
