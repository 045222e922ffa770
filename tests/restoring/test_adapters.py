"""Where low-rank adapters go, what is trained, and what merging leaves of the zeros."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.minis import opened
from vlbench.compression.cut import Cut
from vlbench.compression.state import Compression
from vlbench.errors import RunFailed, UserError
from vlbench.machine import memory
from vlbench.restoring.adapters import (
    AdapterOptions,
    alone,
    drawn,
    forget_filled,
    parse_ranks,
    placed,
    pruned_towers,
    refuse_large_teacher,
    refuse_misplaced,
    verify_zeros,
)
from vlbench.structure import Block, Site, Slice, Structure, Tower


def options(**given: Any) -> AdapterOptions:
    return AdapterOptions.model_validate(given)


# Where they go -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Any:
    """Towers vision, question and answer."""
    return opened("blip-vqa-mini")


def towers(model: Any, ranks: dict[str, int]) -> dict[str, set[int]]:
    """Tower -> ranks of its adapters; "" for what is outside."""
    found: dict[str, set[int]] = {}
    owner = {m.removesuffix(".weight"): t.name for t in model.structure().towers for m in Structure((t,)).matrices}
    for path, rank in ranks.items():
        found.setdefault(owner.get(path, ""), set()).add(rank)
    return found


def test_by_default_every_matrix_of_the_pruned_towers_has_one(model: Any) -> None:
    structure = model.structure()
    question = next(t for t in structure.towers if t.name == "question")
    name = next(iter(Structure((question,)).matrices))
    masked = Compression(masks={name: torch.ones(1)})
    assert pruned_towers(structure, masked) == {"question"}
    cut = Compression(cuts=[Cut({question.sites[0].name: ("dim", [0])})])
    assert pruned_towers(structure, cut) == {"question"}
    assert pruned_towers(structure, Compression()) == {"vision", "question", "answer"}
    found = placed(model, options(), {"question"})
    assert {f"{path}.weight" for path in found} == set(Structure((question,)).matrices)
    assert set(found.values()) == {8}


PLACES: list[tuple[dict[str, Any], dict[str, set[int]]]] = [
    ({}, {"question": {8}}),
    ({"rank": 3}, {"question": {3}}),
    ({"ranks": "vision:4"}, {"vision": {4}, "question": {8}}),
    ({"ranks": "vision:4,language:2"}, {"vision": {4}, "question": {2}, "answer": {2}}),
    ({"ranks": "language:2,answer:5"}, {"question": {2}, "answer": {5}}),
    ({"ranks": "question:0,vision:1"}, {"vision": {1}}),
    ({"ranks": "qformer?:2"}, {"question": {8}}),
    ({"ranks": "vision?:2,question:0"}, {"vision": {2}}),
]


@pytest.mark.parametrize(("given", "wanted"), PLACES)
def test_ranks_by_tower_and_modality(model: Any, given: dict[str, Any], wanted: dict[str, set[int]]) -> None:
    assert towers(model, placed(model, options(**given), {"question"})) == wanted


def test_a_module_outside_the_prunable_set_by_its_name(model: Any) -> None:
    """Its Linears, but for those that are a tower's."""
    structure = model.structure()
    heads = [
        n for n, m in model.net.named_modules() if isinstance(m, nn.Linear) and f"{n}.weight" not in structure.matrices
    ]
    assert heads
    found = placed(model, options(ranks=f"{heads[0]}:2,question:0"), {"question"})
    assert found == {heads[0]: 2}
    root = heads[0].partition(".")[0]
    assert set(placed(model, options(ranks=f"{root}:2"), {"question"})) >= {heads[0]}


def test_targets_are_names_that_modules_end_in(model: Any) -> None:
    found = placed(model, options(targets="qkv,fc1"), {"vision"})
    assert {path.rpartition(".")[2] for path in found} == {"qkv", "fc1"}
    assert len(found) == 8
    assert not set(placed(model, options(targets="fc2"), {"vision"})) & set(found)
    with pytest.raises(
        UserError, match=r"targets=kv,c1 matches none of the matrices here, which end in fc1, fc2, proj"
    ):
        placed(model, options(targets="kv,c1"), {"vision"})  # whole names, not their ends


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"rank": 65}, "rank 65 is too large for vision_model"),
    ({"ranks": "language:100"}, "a matrix of 64 x 64: at most 64"),
    (
        {"ranks": "visoin:4"},
        r"no tower or module 'visoin'. Its towers: vision \(vision\), question \(language\), answer",
    ),
    ({"targets": "q_proj"}, "targets=q_proj matches none of the matrices here, which end in dense, fc1, fc2, key"),
    ({"ranks": "vision:0,language:0"}, "leaves none of the matrices"),
    (
        {"rank": 4, "ranks": "vision:2,language?:2"},
        "rank=4 is no tower's: ranks=vision:2,language.:2 names all",
    ),
]


@pytest.mark.parametrize(("given", "sentence"), WRONG)
def test_what_no_pruner_can_make_good_is_told_before(model: Any, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        refuse_misplaced(model, options(**given))


def test_what_only_some_towers_cannot_is_told_where_it_is_known() -> None:
    """A tower of narrow matrices that may not be pruned at all is no reason to refuse."""
    net: Any = nn.ModuleDict({"wide": nn.Linear(32, 32), "narrow": nn.Linear(4, 32)})

    class Two:
        def __init__(self) -> None:
            self.net = net

        def structure(self) -> Any:
            return opened_structure(net)

    model: Any = Two()
    refuse_misplaced(model, options(rank=8))
    assert placed(model, options(rank=8), {"wide"}) == {"wide": 8}
    with pytest.raises(UserError, match="rank 8 is too large for narrow, a matrix of 32 x 4: at most 4"):
        placed(model, options(rank=8), {"wide", "narrow"})


def opened_structure(net: nn.Module) -> Structure:
    """A tower for each child."""
    made = []
    for name, layer in net.named_children():
        shape = tuple(layer.get_parameter("weight").shape)
        one = Slice(f"{name}.weight", shape, 0, torch.arange(shape[0])[:, None], gated=True)
        made.append(Tower(name, (Block(name, (Site(name, "ffn", name, "neuron", (one,)),)),)))
    return Structure(tuple(made))


@pytest.mark.parametrize("text", ["vision", "vision:x", ":3", "vision:4,vision:2", "vision:-1", "vision:4 language:2"])
def test_ranks_that_say_nothing(text: str) -> None:
    with pytest.raises(ValueError, match=r"like vision:4|given twice"):
        parse_ranks(text)


# What they leave ---------------------------------------------------------------------------------------------------


def masked_net() -> tuple[nn.Module, Compression]:
    torch.manual_seed(0)
    net = nn.ModuleDict({"one": nn.Linear(8, 6), "two": nn.Linear(8, 6)})
    masks = {f"{name}.weight": torch.tensor([True, False, True, False] * 12).view(6, 8) for name in net}
    with torch.no_grad():
        for name, keep in masks.items():
            net.get_parameter(name).mul_(keep)
    return net, Compression(masks=masks, pattern="2:4")


@pytest.mark.parametrize(
    ("pattern", "left"), [("2:4", "dense"), ("unstructured", "dense"), ("structured+2:4", "structured")]
)
def test_filled_masks_are_forgotten(pattern: str, left: str) -> None:
    net, state = masked_net()
    state.pattern = pattern
    forget_filled(net, state)
    assert (len(state.masks), state.pattern) == (2, pattern)  # nothing was filled
    for name, count, then in (("one", 1, pattern), ("two", 0, left)):
        with torch.no_grad():
            net.get_parameter(f"{name}.weight")[0, 1] = 1e-30
        forget_filled(net, state)
        assert (len(state.masks), state.pattern) == (count, then)


def test_zeros_and_patterns_are_verified() -> None:
    net, state = masked_net()
    verify_zeros(net, state)
    with torch.no_grad():
        net.get_parameter("one.weight")[0, 1] = 1e-30
    with pytest.raises(RunFailed, match=r"merging the adapter of one.weight filled zeros"):
        verify_zeros(net, state)
    net, state = masked_net()
    keep = state.masks["two.weight"]
    keep[0, 0] = False
    state.masks["two.weight"] = keep
    with torch.no_grad():
        net.get_parameter("two.weight")[0, 0] = 0
    with pytest.raises(RunFailed, match=r"the mask of two.weight is not of the pattern 2:4"):
        verify_zeros(net, state)


def test_nothing_but_what_is_chosen_is_trained_and_then_all_is_again() -> None:
    net, _ = masked_net()
    net.get_parameter("two.bias").requires_grad_(False)
    with alone(net):
        assert not any(p.requires_grad for p in net.parameters())
        net.get_parameter("one.bias").requires_grad_(True)
    assert {n for n, p in net.named_parameters() if not p.requires_grad} == {"two.bias"}


def test_drawing_changes_no_later_draw() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    with drawn(1):
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), wanted)
    with drawn(1):
        assert torch.equal(torch.rand(3), first)


@pytest.mark.parametrize("loss", ["kd", "both"])
def test_a_teacher_that_does_not_fit(model: Any, monkeypatch: pytest.MonkeyPatch, loss: str) -> None:
    size = sum(p.numel() * p.element_size() for p in model.net.parameters())
    monkeypatch.setattr(memory, "free_memory", lambda device: size)
    refuse_large_teacher(model, options(loss=loss))
    monkeypatch.setattr(memory, "free_memory", lambda device: size - 1)
    refuse_large_teacher(model, options())
    with pytest.raises(UserError, match=rf"loss={loss} needs the dense model .* {size / 1e9:.3g} GB more, and cpu has"):
        refuse_large_teacher(model, options(loss=loss))
