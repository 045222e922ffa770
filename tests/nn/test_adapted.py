"""Low-rank adapters on a layer: the recorded outputs of SparseLoRA's code, gradients by hand, and what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlbench.nn.adapted import MaskedProduct, SideBranch, attach, detach, effective
from vlbench.restoring.adapters import AdapterOptions, attach_new, merge

NEAR = {"rtol": 1e-5, "atol": 1e-5}


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
    attach_new(net, {"layer": 8}, AdapterOptions(), masks, recompute=False)
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


def test_a_branch_in_bfloat16_keeps_the_type() -> None:
    layer: Any = nn.Linear(6, 5, dtype=torch.bfloat16).requires_grad_(False)
    attach(layer, torch.randn(2, 6), torch.randn(5, 2), 1.5)
    assert isinstance(layer, SideBranch)
    assert layer(torch.randn(3, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16
