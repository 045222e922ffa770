"""Oracle: a stream whose gates are 0. Cutting its dimensions gives the same outputs in float64, in every kind that has
one; and counts of entries by enumeration."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
from torch import Tensor

from tests.nn import kinds, library_kinds
from vlbench.compression.cut import Cut, cut
from vlbench.compression.width import WidthGates, choose_width, entries_left, key_of_width, streams
from vlbench.errors import UserError
from vlbench.structure import check_structure

KINDS = {kind.name: kind for kind in (*kinds.KINDS, *library_kinds.LIBRARY_KINDS)}
# Kinds whose streams cannot be narrowed, and what the sentence says.
REFUSED = {
    "t5": "share one matrix",
    "t5_plain": "share one matrix",
    "blip2_qformer": "does not say",
    "instruct_qformer": "does not say",
    "Qwen3VLVision": "deepstack_merger_list",
}


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def some(width: int, seed: int) -> Tensor:
    """About two thirds of the dimensions, the first and the last not always among them."""
    order = torch.randperm(width, generator=torch.Generator().manual_seed(seed))
    return order[: width - width // 3].sort().values


@pytest.mark.parametrize("name", [name for name in KINDS if name not in REFUSED])
def test_narrowed_equals_gated(name: str) -> None:
    kind = KINDS[name]
    whole = kind.adopt(kind.build())
    structure = kind.structure(whole)
    check_structure(whole, structure)
    dense, by_key = kind.run(whole), streams(structure)
    assert by_key, [t.stream for t in structure.towers]
    ways = [{key: some(s.width, n)} for n, (key, s) in enumerate(by_key.items())]
    for keep in [*ways, {k: v for way in ways for k, v in way.items()}]:
        gated, small = deepcopy(whole), deepcopy(whole)
        gates = WidthGates(gated, kind.structure(gated))
        assert float((kind.run(gated) - dense).abs().max()) <= 1e-12
        gates.set({k: torch.zeros(by_key[k].width, dtype=torch.float64).index_fill(0, v, 1.0) for k, v in keep.items()})
        want = kind.run(gated)
        made = Cut.of(kind.structure(small), keep)
        cut(small, kind.structure(small), keep)
        check_structure(small, kind.structure(small))
        assert {k: s.width for k, s in streams(kind.structure(small)).items()} == {
            k: len(keep.get(k, range(s.width))) for k, s in by_key.items()
        }
        shown = kind.run(small)
        if shown.shape != want.shape:  # the run shows the stream itself, where what is gone is 0
            assert int((want.flatten(0, -2).abs().amax(0) > 0).sum()) == shown.shape[-1]
            shown = torch.zeros_like(want).masked_scatter(
                want.flatten(0, -2).abs().amax(0).gt(0).expand_as(want), shown
            )
        assert float((shown - want).abs().max()) <= 1e-10
        assert float((want - dense).abs().max()) > 1e-6
        again = deepcopy(whole)
        made.repeat(again, kind.structure(again))
        assert torch.equal(kind.run(again), kind.run(small))
        gates.remove()
        assert torch.equal(kind.run(gated), dense)


@pytest.mark.parametrize(("name", "why"), REFUSED.items())
def test_what_cannot_be_narrowed_says_why(name: str, why: str) -> None:
    kind = KINDS[name]
    net = kind.adopt(kind.build())
    structure = kind.structure(net)
    assert not streams(structure)
    with pytest.raises(UserError, match=why):
        cut(net, structure, {key_of_width(structure.towers[0]): torch.arange(4)})


def test_entries_are_products_of_what_is_kept() -> None:
    """Against a cut model: its prunable matrices counted, of sites and streams cut together."""
    kind = KINDS["blip_vqa"]
    net = kind.adopt(kind.build())
    structure = kind.structure(net)
    keep = {site.name: some(site.units, n) for n, site in enumerate(structure.sites)}
    keep |= {key: some(stream.width, 50 + n) for n, (key, stream) in enumerate(streams(structure).items())}
    assert entries_left(structure, {}) == structure.size
    wanted = entries_left(structure, keep)
    cut(net, structure, keep)
    assert kind.structure(net).size == wanted
    assert wanted < structure.size / 2


def test_choice_meets_the_target_with_one_share_for_all_streams() -> None:
    kind = KINDS["blip_vqa"]
    structure = kind.structure(kind.adopt(kind.build()))
    importance = {key: torch.arange(float(s.width)).flip(0) for key, s in streams(structure).items()}
    kept = choose_width(structure, importance, 0.5)
    assert entries_left(structure, kept) / structure.size == pytest.approx(0.5, abs=0.03)
    assert {len(one) for one in kept.values()} == {12}  # of 24: what is written and read is narrowed once
    assert all(one.tolist() == list(range(12)) for one in kept.values())
    assert {len(one) for one in choose_width(structure, importance, 0.5, 8).values()} <= {8, 16}
    with pytest.raises(UserError, match="cannot be reached by what is narrowed"):
        choose_width(structure, {"vision.width": importance["vision.width"]}, 0.9)


def test_soft_gates_have_the_gradient_of_a_difference() -> None:
    kind = KINDS["deit"]
    net = kind.adopt(kind.build())
    gates = WidthGates(net, kind.structure(net))
    value, step = gates.value["vision.width"], 1e-6
    with torch.enable_grad():
        kind.run(net).square().mean().backward()
    ends = []
    for sign in (1, -1):
        gate = torch.ones(24, dtype=torch.float64)
        gate[5] += sign * step
        gates.set({"vision.width": gate})
        ends.append(float(kind.run(net).square().mean()))
    assert value.grad is not None
    assert float(value.grad[5]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)
