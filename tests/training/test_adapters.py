"""Low-rank adapters: the recorded outputs of SparseLoRA's code, gradients by hand, what is kept, where they go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.minis import opened
from vlbench import memory
from vlbench.errors import RunFailed, UserError
from vlbench.job import Compression
from vlbench.nn.adapted import MaskedProduct, SideBranch, attach, detach, effective
from vlbench.pruning.cut import Cut
from vlbench.structure import Structure
from vlbench.training.adapters import (
    AdapterOptions,
    alone,
    attach_new,
    drawn,
    forget_filled,
    merge,
    parse_ranks,
    placed,
    pruned_towers,
    refuse_large_teacher,
    refuse_misplaced,
    verify_zeros,
)

NEAR = {"rtol": 1e-5, "atol": 1e-5}


def options(**given: Any) -> AdapterOptions:
    return AdapterOptions.model_validate(given)


class Recorded:
    """One file of the original's arrays, and a layer set up as it was."""

    def __init__(self, file: Path) -> None:
        self.arrays = np.load(file)

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.arrays[key]))

    def layer(self, *, sparse: bool, recompute: bool = False) -> nn.Linear:
        """W as it is stored (dense), or with its zeros where the adapter stands beside it."""
        rows, columns = self["W"].shape
        made = nn.Linear(columns, rows).requires_grad_(False)
        made.weight.copy_(self["W"] if sparse else self["W"] * self["mask_keep"])
        made.bias.copy_(self["bias"])
        keep = self["mask_keep"] if sparse else None
        attach(made, self["A0"].clone(), self["B0"].clone(), 2.0, keep=keep, recompute=recompute)
        return made


@pytest.fixture(params=["u50", "2of4"])
def recorded(request: pytest.FixtureRequest, shared: Path) -> Recorded:
    return Recorded(shared / "oracles" / "pruners" / f"sparselora_48x64_{request.param}.npz")


@pytest.mark.parametrize("way", ["sparse", "recompute", "lora"])
def test_forward_gradients_five_steps_and_merging_are_the_originals(recorded: Recorded, way: str) -> None:
    kind = "lora" if way == "lora" else "sparse"
    layer: Any = recorded.layer(sparse=kind == "sparse", recompute=way == "recompute")
    x, y = recorded["X"], recorded["Y"]
    torch.testing.assert_close(layer(x), recorded[f"{kind}_fwd"], **NEAR)
    F.mse_loss(layer(x), y).backward()
    torch.testing.assert_close(layer.lora_a.grad, recorded[f"{kind}_gradA"], **NEAR)
    torch.testing.assert_close(layer.lora_b.grad, recorded[f"{kind}_gradB"], **NEAR)
    optimiser = torch.optim.AdamW([layer.lora_a, layer.lora_b], lr=1e-2, weight_decay=0.0)
    for wanted in recorded[f"{kind}_losses"]:
        optimiser.zero_grad()
        loss = F.mse_loss(layer(x), y)
        assert loss.item() == pytest.approx(float(wanted), rel=1e-5)
        loss.backward()
        optimiser.step()
    torch.testing.assert_close(layer.lora_a.detach(), recorded[f"{kind}_A5"], **NEAR)
    torch.testing.assert_close(layer.lora_b.detach(), recorded[f"{kind}_B5"], **NEAR)
    torch.testing.assert_close(layer(x), recorded[f"{kind}_fwd5"], **NEAR)
    merge(nn.ModuleDict({"layer": layer}), {"layer": 8})
    assert type(layer) is nn.Linear
    torch.testing.assert_close(layer.weight.detach(), recorded[f"{kind}_merged"], **NEAR)
    torch.testing.assert_close(layer(x), recorded[f"{kind}_fwd_merged"], rtol=1e-4, atol=1e-4)
    zero = layer.weight == 0
    assert torch.equal(zero, ~recorded["mask_keep"]) if kind == "sparse" else not bool(zero.any())


def test_the_draw_of_a_and_b_is_the_originals(recorded: Recorded) -> None:
    """After what the original draws first: W, A and B as Linears, and W once more."""
    rows, columns = recorded["W"].shape
    net = nn.ModuleDict({"layer": nn.Linear(columns, rows)})
    masks = {"layer.weight": recorded["mask_keep"]}
    torch.manual_seed(11)
    for count in (rows * columns + rows, 8 * columns, rows * 8, rows * columns + rows):
        torch.rand(count)
    attach_new(net, {"layer": 8}, options(), masks, recompute=False)
    layer: Any = net["layer"]
    assert torch.equal(layer.lora_a.detach(), recorded["init_A_seed11"])
    assert torch.equal(layer.lora_b.detach(), recorded["init_B_seed11"])
    assert layer.scaling == 2.0


# By hand -----------------------------------------------------------------------------------------------------------


def wide(recompute: bool, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> tuple[Any, Tensor]:
    """A layer of more rows than are worked on at once, and its mask."""
    torch.manual_seed(3)
    layer = nn.Linear(24, 600, dtype=dtype).requires_grad_(False)
    keep = torch.rand(600, 24) < 0.4
    a, b = torch.randn(4, 24, dtype=torch.promote_types(dtype, torch.float32)), torch.randn(600, 4)
    attach(layer, a, b.to(a.dtype), 0.5, dropout=dropout, keep=keep, recompute=recompute)
    return layer, keep


def plainly(layer: Any, keep: Tensor, x: Tensor) -> Tensor:
    return F.linear(x, (layer.weight + layer.scaling * layer.lora_b @ layer.lora_a) * keep, layer.bias)


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_exact(recompute: bool) -> None:
    """Of the input, A and B, of many tokens in two dimensions, against autograd on the plain formula."""
    layer, keep = wide(recompute)
    found = []
    for forward in (layer, lambda x: plainly(layer, keep, x)):
        x = torch.randn(2, 5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        (forward(x) ** 3).sum().backward()
        found.append([x.grad, layer.lora_a.grad, layer.lora_b.grad, forward(x).detach()])
        layer.zero_grad()
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-10)
    assert layer.weight.grad is None


@pytest.mark.parametrize("recompute", [False, True])
def test_under_autocast_the_product_is_made_in_float32(recompute: bool) -> None:
    layer, keep = wide(recompute, dtype=torch.float32)
    x = torch.randn(7, 24)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    whole = effective(layer.weight, keep, layer.lora_a, layer.lora_b, layer.scaling)
    wanted = F.linear(x.bfloat16(), whole.bfloat16()) + layer.bias.bfloat16()
    torch.testing.assert_close(y, wanted, rtol=2e-2, atol=2e-2)
    y.float().sum().backward()
    assert layer.lora_a.grad.dtype == torch.float32
    wanted_b = layer.scaling * ((torch.ones(600, 7) @ x.bfloat16().float()) * keep) @ layer.lora_a.detach().t()
    torch.testing.assert_close(layer.lora_b.grad, wanted_b, rtol=2e-2, atol=5e-2)


def test_weights_in_bfloat16_are_merged_in_float32() -> None:
    layer, keep = wide(recompute=False, dtype=torch.bfloat16)
    assert layer(torch.randn(3, 24, dtype=torch.bfloat16)).dtype == torch.bfloat16
    wanted = (layer.weight.float() + layer.scaling * layer.lora_b @ layer.lora_a) * keep
    merge(nn.ModuleDict({"layer": layer}), {"layer": 4})
    assert torch.equal(layer.weight, wanted.bfloat16())
    assert not bool((layer.weight[~keep] != 0).any())


def kept_copies(layer: nn.Linear, x: Tensor) -> int:
    """How many tensors of the weight's size are kept for the backward pass, besides those that are there anyway."""
    there = {t.untyped_storage().data_ptr() for t in (*layer.parameters(), *layer.buffers())}
    found: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in there and tensor.numel() >= layer.weight.numel():
            found.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    return len(found)


def test_recompute_keeps_no_copy_of_the_weight() -> None:
    x = torch.randn(2, 24, dtype=torch.float64, requires_grad=True)
    assert kept_copies(wide(recompute=True)[0], x) == 0
    assert kept_copies(wide(recompute=False)[0], x) == 1


def test_dropout_leaves_out_columns_of_a() -> None:
    """The same for all tokens of a step; the rest is scaled up; none in evaluation."""
    layer, keep = wide(recompute=False, dropout=0.5)
    x = torch.eye(24, dtype=torch.float64)
    alone_ = F.linear(x, layer.weight * keep, layer.bias)
    full = layer.eval()(x) - alone_
    torch.manual_seed(0)
    part = layer.train()(x) - alone_
    dropped = (part.abs() < 1e-12).all(1)
    assert 4 < int(dropped.sum()) < 20
    torch.testing.assert_close(part[~dropped], 2 * full[~dropped])
    torch.testing.assert_close(full, plainly(layer, keep, x) - alone_)


def test_the_branchs_dropout_is_on_its_input_alone() -> None:
    layer: Any = nn.Linear(6, 5).requires_grad_(False)
    attach(layer, torch.randn(2, 6), torch.randn(5, 2), 1.5, dropout=0.5)
    x = torch.randn(400, 6)
    torch.manual_seed(0)
    y = layer.train()(x)
    torch.manual_seed(0)
    wanted = F.linear(x, layer.weight, layer.bias) + F.dropout(x, 0.5) @ layer.lora_a.t() @ layer.lora_b.t() * 1.5
    torch.testing.assert_close(y, wanted)
    assert not torch.equal(y, layer.eval()(x))


def test_a_detached_layer_is_as_before() -> None:
    layer, _ = wide(recompute=True)
    assert isinstance(layer, MaskedProduct)
    assert set(layer.state_dict()) == {"weight", "bias", "lora_a", "lora_b"}  # the mask is the cell's, saved elsewhere
    detach(layer)
    assert vars(layer).keys() == vars(nn.Linear(24, 600)).keys()
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert type(layer) is nn.Linear


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
    from vlbench.structure import Block, Site, Slice, Tower

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
    state.masks["two.weight"][0, 0] = False
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
    room: Callable[[Any], int] = lambda device: size  # noqa: E731
    monkeypatch.setattr(memory, "free_memory", room)
    refuse_large_teacher(model, options(loss=loss))
    monkeypatch.setattr(memory, "free_memory", lambda device: size - 1)
    refuse_large_teacher(model, options())
    with pytest.raises(UserError, match=rf"loss={loss} needs the dense model .* {size / 1e9:.3g} GB more, and cpu has"):
        refuse_large_teacher(model, options(loss=loss))


def test_free_memory_is_some() -> None:
    assert memory.free_memory(torch.device("cpu")) > 1 << 20


def test_a_branch_in_bfloat16_keeps_the_type() -> None:
    layer: Any = nn.Linear(6, 5, dtype=torch.bfloat16).requires_grad_(False)
    attach(layer, torch.randn(2, 6), torch.randn(5, 2), 1.5)
    assert isinstance(layer, SideBranch)
    assert layer(torch.randn(3, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16
