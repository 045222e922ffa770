"""MACs of a unit: what it says is what a counter misses after the cut."""

from __future__ import annotations

import torch

from tests.nn.kinds import KINDS
from vlbench.cost.counts import flop_counter
from vlbench.cost.units import unit_macs
from vlbench.pruning.cut import cut


def counted(net: torch.nn.Module, run: object) -> int:
    with torch.no_grad(), flop_counter() as counter:
        run(net)  # type: ignore[operator]
    return int(counter.get_total_flops()) // 2


def test_removed_units_are_what_the_counter_misses() -> None:
    kind = next(k for k in KINDS if k.name == "deit")
    net = kind.adopt(kind.build())
    images = torch.randn(1, 3, 16, 16, dtype=next(net.parameters()).dtype)

    def run(module: torch.nn.Module) -> torch.Tensor:
        found: torch.Tensor = module(images)
        return found

    structure = kind.structure(net)
    macs = unit_macs(net, structure, lambda: run(net))
    before = counted(net, run)
    keep = {s.name: torch.arange(max(1, s.units // (i + 2))) for i, s in enumerate(structure.sites)}
    cut(net, structure, keep)
    predicted = sum(macs[s.name] * (s.units - len(keep[s.name])) for s in structure.sites)
    assert before - counted(net, run) == predicted
