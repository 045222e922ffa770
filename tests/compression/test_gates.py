"""Gates on weights: the same bits as the plain expression, and no second copy of the weights is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests import minis
from vlbench.compression.gates import Gates, _GatedLinear
from vlbench.structure import Structure, ffn_site


class Layer(nn.Module):
    """up -> GELU -> down."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(24, 40, bias=bias), nn.Linear(40, 24, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.down(F.gelu(self.up(x)))
        return found


def inputs(shape: str) -> Tensor:
    x = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(1))
    return {"matrix": x.flatten(0, 1), "batch": x, "strided": torch.cat([x, x], 2)[:, ::2, :24]}[shape].requires_grad_()


def gradients(work: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
    out = work()
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out.dtype)
    return (out.detach(), *torch.autograd.grad((out * weights).sum(), tensors))


@pytest.mark.parametrize("shape", ["matrix", "batch", "strided"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("precision", ["float64", "float32", "bf16"])
def test_a_gated_linear_is_the_plain_expression_bit_for_bit(shape: str, bias: bool, precision: str) -> None:
    torch.manual_seed(0)
    dtype = torch.float64 if precision == "float64" else torch.float32
    linear = nn.Linear(24, 40, bias=bias).to(dtype)
    x = inputs(shape).detach().to(dtype).requires_grad_()
    gate = torch.rand(40, dtype=dtype, requires_grad=True)
    own = (linear.weight, linear.bias)

    def plain() -> Tensor:
        return F.linear(x, linear.weight * gate[:, None], linear.bias * gate if bias else None)

    def gated() -> Tensor:
        found: Tensor = _GatedLinear.apply(x, *own, gate)
        return found

    wanted = [x, gate, linear.weight, *([linear.bias] if bias else [])]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        found = [gradients(work, *wanted) for work in (gated, plain)]
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        if shape == "strided" and precision != "float64":  # torch multiplies each sample of such a batch by itself
            assert torch.allclose(one.float(), other.float(), rtol=0, atol=0.1 if precision == "bf16" else 1e-5)
        else:
            assert torch.equal(one, other)


def test_inputs_and_weights_may_be_frozen() -> None:
    layer = Layer(bias=True)
    layer.up.weight.requires_grad_(False)
    gates = Gates(layer, Structure((_tower(layer),)))
    layer(inputs("batch").detach()).sum().backward()
    taken = gates.take()["ffn"]
    with torch.no_grad():
        layer.up.weight.requires_grad_(True)
    layer.zero_grad()
    layer(inputs("batch").detach()).sum().backward()
    assert torch.equal(gates.take()["ffn"], taken)
    assert layer.up.weight.grad is not None


def _tower(layer: Layer) -> Any:
    from vlbench.structure import Block, Tower

    site = ffn_site(layer, "ffn", modality="vision", up="up", down="down", activation=F.gelu)
    return Tower("vision", (Block("", (site,)),))


def kept(net: nn.Module, work: Any) -> dict[int, int]:
    """Storages that autograd keeps, but for parameters: address -> bytes."""
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    found: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        if tensor.untyped_storage().data_ptr() not in own:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return found


def test_no_gated_weight_is_kept_for_the_backward_pass() -> None:
    """UPop's search on a real model, whose weights outweigh the activations of one image."""
    model = minis.opened("deit-mini")
    images = torch.randn(1, 3, 64, 64)
    before = sum(kept(model.net, lambda: model.net(images).sum()).values())
    weights = sum(model.net.get_parameter(s.param).nbytes for site in model.structure().sites for s in site.slices)
    Gates(model.net, model.structure())
    after = sum(kept(model.net, lambda: model.net(images).sum()).values())
    assert weights > 0.5 * before
    assert after / before <= 1.06
