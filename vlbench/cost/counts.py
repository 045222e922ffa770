"""Parameters and MACs of a model as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..errors import UserError
from ..model import Model
from ..records.record import Parameters
from ..task import Task
from .sample import stated, train


def count_parameters(model: Model, *, dense: int, prunable: int, towers: Mapping[str, int]) -> Parameters:
    """Counts after compression. dense, prunable, towers: sizes of the model before it."""
    structure = model.structure()
    left = {
        tower.name: sum(int(model.net.get_parameter(m).count_nonzero()) for m in _matrices(tower.sites))
        for tower in structure.towers
    }
    parameters = list(model.net.parameters())
    return Parameters(
        dense=dense,
        total=sum(p.numel() for p in parameters),
        nonzero=sum(int(p.count_nonzero()) for p in parameters),
        prunable=prunable,
        removed=prunable - sum(left.values()),
        towers={name: round(1 - left[name] / size, 6) for name, size in towers.items()},
    )


def _matrices(sites: Sequence[Any]) -> list[str]:
    return list(dict.fromkeys(name for site in sites for name in site.matrices))


@contextmanager
def flop_counter() -> Iterator[FlopCounterMode]:
    """Counts the same in every torch: the plain form of attention is two products, and its fused kernel for CPUs is
    counted from torch 2.15 on only."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


def stated_macs(model: Model, capability: str) -> int:
    """Multiply-accumulates of the capability's stated sample: a training-style forward pass (see stated.py)."""
    model.net.eval()
    batch = stated(capability).make(model, 1, True)
    with torch.no_grad(), flop_counter() as counter:
        train(model, capability, batch)
    return int(counter.get_total_flops()) // 2


def macs_of(model: Model, task: Task) -> int | None:
    """Of the capability's stated sample (cost/sample.py), which no faster loop changes. None for a model that cannot be
    given one: a family of one's own without `tokenizer`."""
    try:
        return stated_macs(model, task.capability)
    except UserError:
        return None
