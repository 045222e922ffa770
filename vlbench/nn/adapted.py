"""Linears with a low-rank adapter, A (r, in) and B (out, r), scaled by s.

    SideBranch        y = W x + b + s B A x                LoRA (Hu et al. 2021, arXiv 2106.09685)
    MaskedProduct     y = ((W + s B A) * M) x + b          SparseLoRA (He et al. 2024, arXiv 2404.02424)

A layer stays the library's nn.Linear with its own weight and bias under their own names; only its class changes, and
A and B stand beside them as `lora_A` and `lora_B`. M is True where a weight is kept: the product B A gets the zeros of
W, so that merging keeps them.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Rows of a weight that are worked on at once. The gradient of W has a weight's size and is needed only through A and B:
# 256 rows of it at width 4096 are 4 MB, which stay in the cache while they are masked and multiplied.
ROWS = 256


class Adapted(nn.Linear):
    """Base of both. The class of before is kept, for `detach`."""

    plain: type[nn.Module]
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    scaling: float
    dropout: float


class SideBranch(Adapted):
    """The adapter beside the weight."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y = F.linear(x, self.weight, self.bias)
        dropped = F.dropout(x, self.dropout, self.training).to(self.lora_A.dtype)
        return (y + F.linear(F.linear(dropped, self.lora_A), self.lora_B) * self.scaling).to(y.dtype)


class MaskedProduct(Adapted):
    """The adapter under the weight's mask. Dropout cannot be on x, which W and B A see in one product: a draw a step
    drops columns of A instead, which is LoRA's dropout on x with the same draw for all tokens."""

    keep: Tensor
    recompute: bool

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        a = self.lora_A
        if self.dropout and self.training:
            a = a * F.dropout(a.new_ones(a.shape[1]), self.dropout)
        with torch.autocast(device, enabled=False):
            given = (x, self.weight, self.bias, self.keep, a, self.lora_B, self.scaling, self.recompute)
            return cast(Tensor, _Masked.apply(*given))


class _Masked(torch.autograd.Function):
    """y = x E^T + b with E = (W + s B A) * M. W is frozen; with G = dy^T x and G' = G * M

        dx = dy E,    dA = s B^T G',    dB = s G' A^T.

    recompute: E is built again in the backward pass, a few rows at a time, so that no copy of W is kept or made.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        keep: Tensor,
        a: Tensor,
        b: Tensor,
        scaling: float,
        recompute: bool,
    ) -> Tensor:
        ctx.scaling = scaling
        if recompute:
            ctx.save_for_backward(x, keep, a, b, weight)
            y = x.new_empty(*x.shape[:-1], len(weight))
            for rows in _parts(weight):
                part = effective(weight[rows], keep[rows], a, b[rows], scaling).to(x.dtype)
                y[..., rows] = x @ part.t()
            return y if bias is None else y.add_(bias)
        whole = torch.empty_like(weight, dtype=x.dtype)
        for rows in _parts(weight):
            whole[rows] = effective(weight[rows], keep[rows], a, b[rows], scaling)
        ctx.save_for_backward(x, keep, a, b, whole)
        return F.linear(x, whole, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        raise NotImplementedError
