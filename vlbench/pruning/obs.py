"""Optimal brain surgeon, a column at a time (SparseGPT's solver, arXiv 2301.00774, algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..compression.masks import Keep
from ..errors import RunFailed


def inverse_factor(hessian: Tensor, damp: float) -> tuple[Tensor, Tensor]:
    """(U, dead): the upper Cholesky factor of (H + damp mean(diag H) I)^-1, and which columns meet no input: their
    diagonal is 1, as in the published code. Raises RunFailed where the damped matrix is not positive definite."""
    hessian = hessian.clone()
    diagonal = hessian.diagonal()  # (in,), a view
    dead = diagonal == 0
    diagonal[dead] = 1
    diagonal += damp * diagonal.mean()
    lower, failed = torch.linalg.cholesky_ex(hessian)
    if not int(failed):
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    if int(failed):
        raise RunFailed("the inputs of a matrix are too much alike to invert their products: give a larger damp=.")
    return upper, dead


def sweep(
    weight: Tensor, hessian: Tensor, keep: Keep, *, damp: float = 0.01, block: int = 128
) -> tuple[Tensor, Tensor]:
    """Prune (out, in) weights whose inputs have the products `hessian` (in, in): (changed weights, mask).

    Masks are chosen a block of columns at a time, n:m ones a group at a time, of weights that have taken in the errors
    of all columns to their left. Precision is the hessian's. Sums run over columns that are rows in memory here:
    everything is transposed.
    """
    m = keep.n_m[1] if keep.n_m else 1
    block = max(1, block // m) * m
    upper, dead = inverse_factor(hessian, damp)
    wide = weight.to(upper.dtype).T.contiguous()  # (in, out)
    original = wide.clone() if bool(dead.any()) else wide
    wide[dead] = 0
    mask = torch.ones_like(wide, dtype=torch.bool)  # (in, out)
    for first in range(0, len(wide), block):
        stop = min(first + block, len(wide))
        factor = upper[first:stop, first:stop]  # (columns, columns) of the block
        errors = _block(wide[first:stop], mask[first:stop], factor, keep.columns(first, stop))  # (columns, out)
        wide[stop:].addmm_(upper[first:stop, stop:].T, errors, alpha=-1)
    if bool(dead.any()) and keep.rule == "exact":
        # Nothing is known of them, and a mask that keeps them keeps them as they were. (The code's zeros are more.)
        wide[dead] = torch.where(mask[dead], original[dead], 0.0)
    return wide.T.to(weight.dtype).contiguous(), mask.T.contiguous()


def _block(wide: Tensor, mask: Tensor, factor: Tensor, keep: Keep) -> Tensor:
    """Prune one block of columns in place, and return their errors (columns, out).

    A column takes in the errors to its left when its turn comes, by one product, instead of all columns to the right
    of each being rewritten: half the memory traffic.
    """
    weights = factor.diagonal().square()[:, None]  # (columns, 1)
    if keep.n_m is None:
        mask.copy_(keep((wide.square() / weights).T).T)
    step = keep.n_m[1] if keep.n_m else 1
    errors = torch.zeros_like(wide)  # (columns, out)
    for start in range(0, len(wide), step):
        stop = start + step
        wide[start:stop].addmm_(factor[:start, start:stop].T, errors[:start], alpha=-1)
        if keep.n_m is not None:
            mask[start:stop] = keep.columns(start, stop)((wide[start:stop].square() / weights[start:stop]).T).T
        for i in range(start, min(stop, len(wide))):
            if i > start:
                wide[i] -= factor[start:i, i] @ errors[start:i]
            errors[i] = torch.where(mask[i], 0.0, wide[i]) / factor[i, i]
            wide[i] *= mask[i]
    return errors
