"""MACs of a unit: what it says is what a counter misses after the cut."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.nn.kinds import KINDS, Kind, floats
from vlbench.compression.cut import cut
from vlbench.cost.counts import flop_counter
from vlbench.plugins.table import table
from vlbench.pruning.unit_cost import unit_macs


def counted(kind: Kind, net: nn.Module) -> int:
    with torch.no_grad(), flop_counter() as counter:
        kind.run(net)
    return int(counter.get_total_flops()) // 2


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_removed_units_are_what_the_counter_misses(kind: Kind) -> None:
    """Of several sequences at once; in cross-attention queries and keys differ in number, and T5 is called twice."""
    net = kind.adopt(kind.build())
    structure = kind.structure(net)
    macs = unit_macs(net, structure, lambda: kind.run(net))
    before = counted(kind, net)
    keep = {s.name: torch.arange(max(1, s.units // (i % 3 + 2))) for i, s in enumerate(structure.sites)}
    cut(net, structure, keep)
    predicted = sum(macs[s.name] * (s.units - len(keep[s.name])) for s in structure.sites)
    assert before - counted(kind, net) == predicted


def test_two_images_cost_twice_what_one_does() -> None:
    """NLVR2's sample has two: their tokens do not meet."""
    kind = next(kind for kind in KINDS if kind.name == "deit")
    net = kind.adopt(kind.build())
    one, two = (unit_macs(net, kind.structure(net), lambda n=n: net(floats(net, n, 3, 16, 16))) for n in (1, 2))
    assert two == {site: 2 * macs for site, macs in one.items()}


def test_results_by_this_price_have_a_version_of_their_own() -> None:
    search = table("methods").get("upop_search").load()
    assert [search.version_of({"unit_cost": cost}) for cost in ("params", "36:1", "macs")] == [1, 1, 2]
