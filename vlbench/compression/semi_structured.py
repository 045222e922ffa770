"""2:4 for real: a linear layer's time with torch's semi-structured tensors, where a GPU has them.

Elsewhere the pattern is verified and the speed is not measured. The gain needs many rows: a few columns of input are
slower than dense (pytorch#111339), so that the number of tokens is part of what is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError

UNMEASURED = "mask verified, speed not measured"
REPEATS = 50


@dataclass(frozen=True)
class Speed:
    """Milliseconds of one linear layer; note says why there are none."""

    dense: float | None = None
    sparse: float | None = None
    note: str = ""


def semi_structured_speed(weight: Tensor, tokens: int, dtype: torch.dtype = torch.float16) -> Speed:
    """Time x W^T for (tokens, in) inputs, dense and 2:4. Raises UserError where the weights (out, in) are not 2:4."""
    if not is_two_of_four(weight):
        raise UserError("accelerate=semi_structured needs weights that keep 2 of every 4 columns: prune to 2:4 first.")
    if why := unsupported(weight):
        return Speed(note=f"{UNMEASURED}: {why}")
    dense = weight.detach().to(dtype).contiguous()
    sparse = torch.sparse.to_sparse_semi_structured(dense)
    x = torch.randn(tokens, weight.shape[1], device=weight.device, dtype=dtype)
    return Speed(_milliseconds(lambda: F.linear(x, dense)), _milliseconds(lambda: F.linear(x, sparse)))


def is_two_of_four(weight: Tensor) -> bool:
    """Whether no four consecutive columns of a row have more than two weights (out, in)."""
    return weight.shape[1] % 4 == 0 and bool(((weight.detach() != 0).reshape(-1, 4).sum(1) <= 2).all())


def unsupported(weight: Tensor) -> str:
    """Why torch has no semi-structured kernel for these weights, or nothing."""
    if weight.device.type != "cuda":
        return "it needs a GPU"
    if torch.cuda.get_device_capability(weight.device) < (8, 0):
        return "it needs a GPU of compute capability 8.0 or more"
    rows, columns = weight.shape
    return f"{rows} x {columns} is no multiple of 32 x 64" if rows % 32 or columns % 64 else ""


def _milliseconds(work: Callable[[], Tensor]) -> float:
    for _ in range(5):
        work()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(REPEATS):
        work()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / REPEATS
