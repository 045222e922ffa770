"""A walk whose blocks are pruned by a function: for tests that look at the statistics themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from vlbench.calibration.blocks import block_statistics
from vlbench.calibration.statistics import Statistics
from vlbench.structure import Block, Structure


def calibrate(
    net: nn.Module,
    structure: Structure,
    runs: Sequence[Callable[[], Any]],
    prune: Callable[[Block, Mapping[str, Statistics]], None],
    **options: Any,
) -> None:
    """prune(block, its statistics) for every block."""
    for block, statistics in block_statistics(net, structure, runs, **options):
        prune(block, statistics)
