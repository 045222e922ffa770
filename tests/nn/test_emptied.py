"""A layer of which every unit is gone computes what it computes with every unit gated to zero, in every library."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch

from tests.nn import kinds
from tests.nn.library_kinds import LIBRARY_KINDS
from tests.nn.test_kinds import adopted, choice, close_gates, unit_choices, worst
from vlbench.compression.cut import cut

EVERY = (*kinds.KINDS, *LIBRARY_KINDS)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.name)
def test_a_layer_without_units_is_one_whose_units_are_gated(kind: kinds.Kind) -> None:
    """Every second layer, by every unit; and the model describes itself afterwards."""
    whole = adopted(kind)
    dense = kind.run(whole)
    for number in range(len(unit_choices(kind.structure(whole)))):
        gated, small = deepcopy(whole), deepcopy(whole)
        sites = choice(kind, whole, number).sites
        keep = {s.name: torch.arange(s.units if i % 2 else 0) for i, s in enumerate(sites)}
        close_gates(gated, choice(kind, gated, number), keep)
        cut(small, choice(kind, small, number), keep)
        want = kind.run(gated)
        assert worst(kind.run(small), want) <= 1e-10
        assert worst(want, dense) > 1e-3
        described = kind.structure(small)
        assert described.matrices == {n: tuple(small.get_parameter(n).shape) for n in described.matrices}
        assert [s.emptied for s in described.sites] == [i % 2 == 0 for i in range(len(sites))]
