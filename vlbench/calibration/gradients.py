"""Gradients of the task's loss with respect to the prunable matrices, over calibration batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import RunFailed
from ..machine.workers import ALONE, World
from ..training.parallel import summed
from .statistics import Statistics

Loss = Callable[[], Tensor]


def gradients(
    net: nn.Module,
    names: Iterable[str],
    losses: Sequence[tuple[Loss, int]],
    *,
    dtype: torch.dtype = torch.float64,
    magnitudes: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    world: World = ALONE,
) -> dict[str, Statistics]:
    """Mean gradient, and mean square of it, of every parameter named. losses: (the mean loss of a batch, its samples).

    The mean gradient does not depend on how samples are put together. Its square does: that of a batch of one is the
    diagonal of the empirical Fisher matrix, that of a larger batch is smaller (the samples' noise cancels).
    magnitudes: `gradient` is the mean of the batches' |gradient|. world: the workers share the batches. Raises
    RunFailed for a gradient that is not finite, and where there is none anywhere.
    """
    net.eval()
    parameters = {name: net.get_parameter(name) for name in names}
    statistics = {name: _empty(p, dtype) for name, p in parameters.items()}
    mine = losses[world.rank :: world.size]
    with _only_these_learn(net, parameters.values()):
        for number, (loss, samples) in enumerate(mine):
            grads = torch.autograd.grad(loss(), list(parameters.values()), allow_unused=True)
            for (name, p), grad in zip(parameters.items(), grads, strict=True):
                grad = torch.zeros_like(p) if grad is None else grad
                _add(name, statistics[name], grad.abs() if magnitudes else grad, samples)
            progress(number + 1, len(mine))
    for sums in statistics.values():
        sums.samples = summed(sums.samples, world)
        for total in (sums.gradient, sums.gradient_square):
            assert total is not None
            world.sum(total)
            total /= max(1, sums.samples)
    if not any(bool(sums.gradient_square.any()) for sums in statistics.values() if sums.gradient_square is not None):
        raise RunFailed("the loss of the calibration samples has no gradient at all: nothing tells weights apart.")
    return statistics


@contextmanager
def _only_these_learn(net: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Gradients of these parameters and of no other; afterwards of those that had one before."""
    flags = {p: p.requires_grad for p in net.parameters()}
    for p in flags:
        p.requires_grad_(False)
    for p in parameters:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p, flag in flags.items():
            p.requires_grad_(flag)


def _empty(parameter: Tensor, dtype: torch.dtype) -> Statistics:
    zeros = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)  # (out, in)
    square = torch.zeros(parameter.shape[-1], dtype=dtype, device=parameter.device)  # (in,)
    return Statistics(square, 0, None, zeros, zeros.clone())


def _add(name: str, seen: Statistics, grad: Tensor, samples: int) -> None:
    assert seen.gradient is not None
    assert seen.gradient_square is not None
    grad = grad.to(seen.gradient.dtype)
    if not bool(torch.isfinite(grad).all()):
        raise RunFailed(f"the gradient of {name} is not finite: weights or data are damaged.")
    seen.gradient += samples * grad
    seen.gradient_square += samples * grad.square()
    seen.samples += samples
