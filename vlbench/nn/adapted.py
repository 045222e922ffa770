"""Linears with a low-rank adapter: A (r, in) and B (out, r), scaled by s.

    SideBranch        y = W x + b + s B A x                LoRA (Hu et al. 2021, arXiv 2106.09685)
    MaskedProduct     y = ((W + s B A) * M) x + b          SparseLoRA (arXiv 2404.02424)

A layer stays the library's nn.Linear with its own weight and bias under their own names; only its class changes, and
A and B stand beside them as `lora_a` and `lora_b`. M is True where a weight is kept: the product B A gets the zeros of
W, so that merging keeps them. A and B are of float32 at least.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import UserError

# Rows of a weight that are worked on at once. The gradient of W has the size of W and is wanted through A and B only:
# of 256 rows at width 4096 it is 4 MB, which stay in a cache while they are masked and multiplied.
ROWS = 256


class Adapted(nn.Linear):
    """Base of both. plain: the layer's class before."""

    plain: type[nn.Module]
    lora_a: nn.Parameter
    lora_b: nn.Parameter
    scaling: float
    dropout: float


class SideBranch(Adapted):
    """The adapter beside the weight, with dropout on its input, in the order of peft's operations."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        dropped = F.dropout(x.to(self.lora_a.dtype), self.dropout, self.training)
        return (y + F.linear(F.linear(dropped, self.lora_a), self.lora_b) * self.scaling).to(y.dtype)


class MaskedProduct(Adapted):
    """The adapter under the weight's mask.

    W and B A read x in one product, so that dropout cannot be on x for B A alone: columns of A are dropped instead,
    which is LoRA's dropout with one draw a step for all tokens.
    """

    keep: Tensor
    recompute: bool

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        a: Tensor = self.lora_a
        if self.dropout and self.training:
            a = a * F.dropout(a.new_ones(a.shape[1]), self.dropout)
        with torch.autocast(device, enabled=False):
            parts = (self.weight, self.keep, a, self.lora_b, self.scaling)
            y = cast(Tensor, _Masked.apply(x, *parts, self.recompute))
            return y if self.bias is None else y + self.bias.to(y.dtype)


class _Masked(torch.autograd.Function):
    """y = x E^T with E = (W + s B A) * M. W is frozen; with G = (dy^T x) * M

        dx = dy E        dA = s B^T G        dB = s G A^T

    recompute: E is built again in the backward pass, some rows at a time: no copy of W is made, and none is kept.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, keep: Tensor, a: Tensor, b: Tensor, scaling: float, recompute: bool
    ) -> Tensor:
        ctx.scaling, ctx.recompute = scaling, recompute
        if recompute:
            ctx.save_for_backward(x, keep, a, b, weight)
            y = x.new_empty(*x.shape[:-1], len(weight))
            for rows in _parts(len(weight)):
                y[..., rows] = x @ effective(weight[rows], keep[rows], a, b[rows], scaling).to(x.dtype).t()
            return y
        whole = torch.empty_like(weight, dtype=x.dtype)
        for rows in _parts(len(weight)):
            whole[rows] = effective(weight[rows], keep[rows], a, b[rows], scaling)
        ctx.save_for_backward(x, keep, a, b, whole)
        return F.linear(x, whole)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, keep, a, b, weight = ctx.saved_tensors
        flat_x, flat_dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        da, db = torch.zeros_like(a), torch.empty_like(b)
        dx = torch.zeros_like(flat_x) if ctx.needs_input_grad[0] and ctx.recompute else None
        for rows in _parts(len(keep)):
            part = flat_dy[:, rows]
            g = (part.t() @ flat_x).to(a.dtype)
            g.mul_(keep[rows].to(g.dtype))
            da.addmm_(b[rows].t(), g, alpha=ctx.scaling)
            db[rows] = (g @ a.t()).mul_(ctx.scaling)
            if dx is not None:
                dx.addmm_(part, effective(weight[rows], keep[rows], a, b[rows], ctx.scaling).to(x.dtype))
        if ctx.needs_input_grad[0] and dx is None:
            dx = flat_dy @ weight
        return (None if dx is None else dx.view_as(x)), None, None, da, db, None, None


def effective(weight: Tensor, keep: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """(W + s B A) * M in the type of A and B, for all rows of a weight or some."""
    merged = torch.addmm(weight.to(a.dtype), b, a, alpha=scaling)
    return merged.mul_(keep.to(merged.dtype))  # a product with booleans is ten times slower on a CPU


def _parts(rows: int) -> Iterator[slice]:
    return (slice(i, min(i + ROWS, rows)) for i in range(0, rows, ROWS))


def attach(
    layer: nn.Linear,
    a: Tensor,
    b: Tensor,
    scaling: float,
    *,
    dropout: float = 0.0,
    keep: Tensor | None = None,
    recompute: bool = False,
) -> None:
    """Put A and B on a layer: under its mask where `keep` is given, beside its weight otherwise."""
    adapted = cast(Any, layer)
    adapted.plain = type(layer)
    layer.__class__ = SideBranch if keep is None else MaskedProduct
    device = layer.weight.device
    adapted.lora_a, adapted.lora_b = nn.Parameter(a.to(device)), nn.Parameter(b.to(device))
    adapted.scaling, adapted.dropout = scaling, dropout
    if keep is not None:
        # The cell's masks say it, and the zeros of W: no state needs a third copy.
        layer.register_buffer("keep", keep.to(device), persistent=False)
        adapted.recompute = recompute


def adapter_keys(path: str) -> tuple[str, str]:
    """Names of a layer's A and B in the state dict."""
    return f"{path}.lora_a", f"{path}.lora_b"


def attach_all(net: nn.Module, tensors: Mapping[str, Tensor], scaling: Mapping[str, float], file: Path) -> None:
    """Put adapters that `file` holds beside the weights of their layers, Linear -> scaling. Raises UserError where they
    are of another model."""
    layers = dict(net.named_modules())
    for path, scale in scaling.items():
        layer = layers.get(path)
        a, b = (tensors.get(name) for name in adapter_keys(path))
        if not isinstance(layer, nn.Linear) or a is None or b is None:
            raise UserError(f"the adapter {file} is of another model: {path} is not in both.")
        if (a.shape[1], b.shape[0]) != (layer.weight.shape[1], layer.weight.shape[0]) or len(a) != b.shape[1]:
            shapes = " and ".join(str(tuple(t.shape)) for t in (a, b, layer.weight))
            raise UserError(f"the adapter {file} is of another model: A, B and the weight of {path} are {shapes}.")
        attach(layer, a, b, scale)


def detach(layer: nn.Linear) -> None:
    """Take the adapter off; the weight is as it is."""
    adapted = cast(Any, layer)
    plain = adapted.plain
    for name in ("lora_a", "lora_b", "scaling", "dropout", "plain", *(("keep", "recompute") * hasattr(layer, "keep"))):
        delattr(layer, name)
    layer.__class__ = plain
