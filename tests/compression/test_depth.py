"""Oracle: a block whose gate is 0. Dropping blocks gives the same outputs in float64, in every tower of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
from torch import Tensor

from tests.nn import kinds, library_kinds
from vlbench.compression.cut import Cut, cut
from vlbench.compression.depth import BlockGates, choose_blocks, entries, key_of, original_blocks, refusal
from vlbench.errors import UserError
from vlbench.structure import Structure, check_structure

KINDS = {kind.name: kind for kind in (*kinds.KINDS, *library_kinds.LIBRARY_KINDS)}


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def subsets(structure: Structure) -> list[dict[str, Tensor]]:
    """Each block that may go alone, then the first block of every tower that may, together."""
    found = []
    for tower in structure.towers:
        for gone in range(len(tower.blocks)):
            rest = [i for i in range(len(tower.blocks)) if i != gone]
            if not refusal(tower, rest):
                found.append({key_of(tower): torch.tensor(rest)})
    together: dict[str, Tensor] = {}
    for one in found:
        together = {**one, **together}
    return [*found, together]


@pytest.mark.parametrize("name", KINDS)
def test_dropped_equals_gated(name: str) -> None:
    kind = KINDS[name]
    whole = kind.adopt(kind.build())
    dense = kind.run(whole)
    ways = subsets(kind.structure(whole))
    assert len(ways) > 1
    for keep in ways:
        gated, small = deepcopy(whole), deepcopy(whole)
        structure = kind.structure(gated)
        gates = BlockGates(gated, structure)
        assert float((kind.run(gated) - dense).abs().max()) <= 1e-12
        for tower in structure.towers:
            if key_of(tower) in keep:
                value = torch.zeros(len(tower.blocks), dtype=torch.float64)
                value[keep[key_of(tower)]] = 1
                gates.set({tower.name: value})
        want = kind.run(gated)
        made = Cut.of(kind.structure(small), keep)
        cut(small, kind.structure(small), keep)
        check_structure(small, kind.structure(small))
        assert float((kind.run(small) - want).abs().max()) <= 1e-10
        assert float((want - dense).abs().max()) > 1e-6
        again = deepcopy(whole)
        made.repeat(again, kind.structure(again))
        assert torch.equal(kind.run(again), kind.run(small))


def test_gate_gradient_is_that_of_the_branch() -> None:
    """dL/dg at g = 1 against a difference of the loss."""
    kind = KINDS["blip_vqa"]
    net = kind.adopt(kind.build())
    gates = BlockGates(net, kind.structure(net))
    with torch.enable_grad():
        loss = kind.run(net).square().mean()
        loss.backward()
    value, step = gates.value["question"], 1e-6
    ends = []
    for sign in (1, -1):
        gates.set({"question": torch.tensor([1.0, 1 + sign * step], dtype=torch.float64)})
        ends.append(float(kind.run(net).square().mean()))
    assert value.grad is not None
    assert float(value.grad[1]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)


def test_blocks_that_others_need_stay() -> None:
    t5 = KINDS["t5"]
    towers = t5.structure(t5.adopt(t5.build())).towers
    assert "position bias" in refusal(towers[0], [1])
    qformer = KINDS["blip2_qformer"]  # cross-attention in blocks 0 and 2
    tower = qformer.structure(qformer.adopt(qformer.build())).towers[0]
    assert not refusal(tower, [1, 2])
    assert "cross-attention" in refusal(tower, [1])
    assert refusal(tower, [])
    net = qformer.adopt(qformer.build())
    with pytest.raises(UserError, match="cross-attention has to stay"):
        cut(net, qformer.structure(net), {key_of(tower): torch.tensor([1])})


def test_choice_meets_the_target_by_cost() -> None:
    kind = KINDS["blip_vqa"]
    structure = kind.structure(kind.adopt(kind.build()))
    scores = {t.name: torch.tensor([2.0, 1.0]) for t in structure.towers}
    kept = choose_blocks(structure, scores, 0.5)
    gone = sum(entries(b) for t in structure.towers for i, b in enumerate(t.blocks) if i not in kept[key_of(t)])
    assert gone / structure.size == pytest.approx(0.5, abs=0.01)
    assert all(k.tolist() == [0] for k in kept.values())
    with pytest.raises(UserError, match="cannot be reached with whole blocks"):
        choose_blocks(structure, scores, 0.9)


def test_numbers_of_blocks_compose() -> None:
    kind = KINDS["blip2_qformer"]
    structure = kind.structure(kind.adopt(kind.build()))
    cuts = [{"qformer.blocks": ("block", [0, 2])}, {"qformer.blocks": ("block", [1])}]
    assert original_blocks(cuts, structure) == {"qformer": [2]}
