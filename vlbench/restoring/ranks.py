"""Adapters whose rank changes while they train ("Investigating Training Strategies and Model Robustness of Low-Rank
Adaptation for Language Modeling in Speech Recognition", Yu et al. 2024, arXiv 2401.10447, names all three).

    warmup      rank R at first; after some steps  B A = U S V^T  and  B <- U_r S_r^1/2,  A <- S_r^1/2 V_r^T  of rank r
    mixed       in every step a rank k of 1 ... r is drawn, and only the first k columns of B and rows of A act
    dynamic     W + P diag(E) Q (AdaLoRA, Zhang et al. 2023, arXiv 2303.10512): the budget of all ranks together falls
                from its start to its target as a cubic, and the triplets of the least importance lose their E:
                s = |p g|,  I <- b1 I + (1 - b1) s,  U <- b2 U + (1 - b2) |s - I|;  importance of a triplet: I U of its
                E plus the means of I U over its column of P and its row of Q;  P and Q are held orthogonal

The paper's code was not published, and its text was not read for warmup and mixed: they are this file's reading of
their names. dynamic is AdaLoRA's own schedule, as peft has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..training.hooks import Hook
from .perturb import Layer, adapted_layers

SENSITIVITY, UNCERTAINTY = 0.85, 0.85  # b1 and b2
ORTHOGONAL = 0.5  # weight of |Q Q^T - I| and |P^T P - I|, a mean over all of them


class HighThenLow(Hook):
    """warmup. ranks: layer -> r. after: steps at the high rank."""

    def __init__(self, net: nn.Module, ranks: Mapping[str, int], after: int) -> None:
        self.layers = {layer.path: layer for layer in adapted_layers(net)}
        self.ranks, self.after = ranks, after
        self.optimiser: torch.optim.Optimizer | None = None

    def bound(self, optimiser: torch.optim.Optimizer) -> None:
        self.optimiser = optimiser

    def after_backward(self, step: int) -> None:
        if step >= self.after:
            for path, layer in self.layers.items():
                _clear(layer.a.grad, layer.b.grad, self.ranks[path])

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        for path, layer in self.layers.items():
            if step + 1 == self.after:
                truncate(layer, self.ranks[path])
                self._forget(layer)
            if step + 1 >= self.after:
                _clear(layer.a, layer.b, self.ranks[path])

    def _forget(self, layer: Layer) -> None:
        """What the optimiser knows of the factors is of other factors."""
        assert self.optimiser is not None
        state: Any = self.optimiser.state
        for factor in (layer.a, layer.b):
            for name, value in state.get(factor, {}).items():
                if isinstance(value, Tensor) and name != "step":
                    value.zero_()


@torch.no_grad()
def truncate(layer: Layer, rank: int) -> None:
    """The nearest product of that rank, both factors of one size, in the place of the adapter's; the rest is 0."""
    u, s, v = torch.linalg.svd(layer.b.double() @ layer.a.double(), full_matrices=False)
    root = s[:rank].sqrt()
    layer.a.zero_()
    layer.b.zero_()
    layer.b[:, :rank] = (u[:, :rank] * root).to(layer.b.dtype)
    layer.a[:rank] = (root[:, None] * v[:rank]).to(layer.a.dtype)


def _clear(a: Tensor | None, b: Tensor | None, rank: int) -> None:
    """Zeros beyond the first `rank` rows of A and columns of B."""
    if a is not None:
        a[rank:] = 0
    if b is not None:
        b[:, rank:] = 0


class Mixed(Hook):
    """mixed. The columns of B that do not act are taken away before the forward pass and put back after the backward
    one."""

    def __init__(self, net: nn.Module) -> None:
        self.layers = adapted_layers(net)
        self._rank = 0
        self._away: list[Tensor] = []

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        most = max(layer.a.shape[0] for layer in self.layers)
        self._rank = int(torch.randint(1, most + 1, ()))
        self._away = [layer.b[:, self._rank :].clone() for layer in self.layers]
        for layer in self.layers:
            layer.b[:, self._rank :] = 0

    @torch.no_grad()
    def after_backward(self, step: int) -> None:
        for layer, away in zip(self.layers, self._away, strict=True):
            layer.b[:, self._rank :] = away
            _clear(layer.a.grad, layer.b.grad, self._rank)


@dataclass(frozen=True)
class Budget:
    """How the sum of all ranks falls. steps: of the training; wait: before it falls; settle: after it has fallen."""

    start: int
    target: int
    steps: int
    wait: int
    settle: int

    def at(self, step: int) -> int:
        """After `step` steps."""
        if step <= self.wait:
            return self.start
        left = 1 - (step - self.wait) / (self.steps - self.settle - self.wait)
        return int((self.start - self.target) * max(left, 0.0) ** 3 + self.target)


class Allocated(Hook):
    """dynamic. layers: path -> (Q (r, in), E (r, 1), P (out, r))."""

    def __init__(self, layers: Mapping[str, tuple[Tensor, Tensor, Tensor]], budget: Budget) -> None:
        self.layers, self.budget = dict(layers), budget
        self.mean = {name: [torch.zeros_like(p) for p in three] for name, three in layers.items()}
        self.spread = {name: [torch.zeros_like(p) for p in three] for name, three in layers.items()}
        self.pattern: dict[str, Tensor] = {}  # layer -> bool (r, 1), the triplets that are left at the end
        self._gradients: dict[str, list[Tensor]] = {}

    def after_backward(self, step: int) -> None:
        factors = [p for q, _, b in self.layers.values() for p in (q, b)]
        with torch.enable_grad():
            apart = [_from_orthogonal(q, b) for q, _, b in self.layers.values()]
            loss = ORTHOGONAL * torch.stack(apart).sum() / len(factors)
            more = torch.autograd.grad(loss, factors)
        for factor, gradient in zip(factors, more, strict=True):
            factor.grad = gradient if factor.grad is None else factor.grad + gradient
        if step + 1 < self.budget.steps - self.budget.settle:
            self._gradients = {
                name: [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in three]
                for name, three in self.layers.items()
            }

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        number, end = step + 1, self.budget.steps - self.budget.settle
        if number < end:
            self._note()
        if number <= end and (number > self.budget.wait or number == end):
            left = self._left(self.budget.at(number))
            self.pattern = left if number == end else {}
            self._mask(left)
        elif number > end:
            self._mask(self.pattern)

    def _note(self) -> None:
        for name, three in self.layers.items():
            for p, gradient, mean, spread in zip(
                three, self._gradients[name], self.mean[name], self.spread[name], strict=True
            ):
                size = (p * gradient).abs()
                mean.mul_(SENSITIVITY).add_((1 - SENSITIVITY) * size)
                spread.mul_(UNCERTAINTY).add_((1 - UNCERTAINTY) * (size - mean).abs())

    def _left(self, budget: int) -> dict[str, Tensor]:
        """Layer -> bool (r, 1), as many True as the budget says, but for equal ones."""
        importance = {}
        for name in self.layers:
            q, e, p = (mean * spread for mean, spread in zip(self.mean[name], self.spread[name], strict=True))
            importance[name] = e.flatten() + q.mean(1) + p.mean(0)
        away = self.budget.start - budget
        if away < 1:
            return {name: torch.ones_like(one, dtype=torch.bool)[:, None] for name, one in importance.items()}
        threshold = torch.kthvalue(torch.cat(list(importance.values())), away)[0]
        return {name: (one > threshold)[:, None] for name, one in importance.items()}

    def _mask(self, left: Mapping[str, Tensor]) -> None:
        for name, (_, e, _) in self.layers.items():
            e.masked_fill_(~left[name].to(e.device), 0.0)

    def state(self) -> dict[str, Tensor]:
        state = {f"pattern.{name}": left for name, left in self.pattern.items()}
        for name in self.layers:
            for number in range(3):
                state[f"mean{number}.{name}"] = self.mean[name][number]
                state[f"spread{number}.{name}"] = self.spread[name][number]
        return state

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        self.pattern = {k.removeprefix("pattern."): v for k, v in state.items() if k.startswith("pattern.")}
        for name in self.layers:
            for number in range(3):
                self.mean[name][number].copy_(state[f"mean{number}.{name}"])
                self.spread[name][number].copy_(state[f"spread{number}.{name}"])


def _from_orthogonal(q: Tensor, p: Tensor) -> Tensor:
    """|Q Q^T - I| + |P^T P - I|."""
    one = torch.eye(len(q), dtype=q.dtype, device=q.device)
    apart: Tensor = torch.linalg.norm(q @ q.T - one) + torch.linalg.norm(p.T @ p - one)
    return apart
