"""Adapters trained beside weights that are moved a little in every step, so that they end where the loss is flat.

W: a frozen weight, A and B its adapter, s its scaling, M_ and G_ the optimiser's first moment and the gradient of each:
    mgpo    D = s (M_B A + B M_A),  e = -rho D / |D| * min(10, 1 / g),  g <- beta g + (1 - beta) |s (G_B A + B G_A)|
            (LoRA-MGPO, arXiv 2502.14538 v2; g begins with its first value; no moment, no step: nothing moves in step 1)
    ggpo    e_i = N_i (sigma w_i + beta g_i^2) / sqrt(rows),  N normal,  g_i = |s (G_B A + B G_A)_i| of the step before,
            w_i^2 = (mean row norm of W)^2 + |(B A)_i|^2    (v1, as kohya-ss/sd-scripts reads it: no code was released)
W + e is there from before the forward pass to after the backward pass. Under a mask e has its zeros. In ggpo's reading
nothing flows back to a layer's input through N; here it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..nn.adapted import Adapted, MaskedProduct
from ..training.hooks import Hook

SCALE = 10.0  # of 1 / g, at most
EPSILON = 1e-12

Kind = Literal["mgpo", "ggpo"]


@dataclass(frozen=True)
class Layer:
    """A weight and its adapter. keep: where the weight is masked."""

    path: str
    weight: Tensor
    a: Tensor
    b: Tensor
    scaling: float
    keep: Tensor | None = None


def adapted_layers(net: nn.Module) -> list[Layer]:
    """Every Linear of `net` with an adapter, ours or peft's."""
    layers: list[Layer] = []
    for path, module in net.named_modules():
        parameter: Any = module
        if isinstance(parameter, Adapted):
            keep = parameter.keep if isinstance(parameter, MaskedProduct) else None
            layers.append(Layer(path, parameter.weight, parameter.lora_a, parameter.lora_b, parameter.scaling, keep))
        elif hasattr(parameter, "lora_A") and hasattr(parameter, "get_base_layer"):
            (name,) = parameter.lora_A.keys()
            a, b = parameter.lora_A[name].weight, parameter.lora_B[name].weight
            layers.append(Layer(path, parameter.get_base_layer().weight, a, b, float(parameter.scaling[name])))
    return layers


def product(layer: Layer, of_a: Tensor, of_b: Tensor) -> Tensor:
    """s (of_b A + B of_a), (out, in): what a step of A and B is to the weight."""
    return layer.scaling * (of_b @ layer.a.detach() + layer.b.detach() @ of_a)


class Perturbed(Hook):
    """Moves the weights before every step, and back. `size`: layer -> g."""

    def __init__(
        self, layers: Sequence[Layer], kind: Kind, *, rho: float = 0.05, beta: float = 0.9, sigma: float = 0.03
    ) -> None:
        self.layers, self.kind, self.rho, self.beta, self.sigma = list(layers), kind, rho, beta, sigma
        self.plain = {layer.path: layer.weight.detach().clone() for layer in layers}
        self.size: dict[str, Tensor] = {}
        self.optimiser: torch.optim.Optimizer | None = None

    def bound(self, optimiser: torch.optim.Optimizer) -> None:
        self.optimiser = optimiser

    def before_step(self, step: int) -> None:
        with torch.no_grad():
            for layer in self.layers:
                moved = self.momentum(layer) if self.kind == "mgpo" else self.noise(layer)
                if moved is not None:
                    layer.weight.add_((moved if layer.keep is None else moved * layer.keep).to(layer.weight.dtype))

    def momentum(self, layer: Layer) -> Tensor | None:
        """mgpo's e, None where there is no moment yet."""
        assert self.optimiser is not None
        state: Any = self.optimiser.state
        if "exp_avg" not in state.get(layer.a, {}) or layer.path not in self.size:
            return None
        step = product(layer, state[layer.a]["exp_avg"], state[layer.b]["exp_avg"])
        longest = (1 / (self.size[layer.path] + EPSILON)).clamp(max=SCALE)
        moved: Tensor = step * (longest * -self.rho / (step.norm() + EPSILON))
        return moved

    def noise(self, layer: Layer, noise: Tensor | None = None) -> Tensor:
        """ggpo's e. noise: N, drawn where it is left out."""
        wide = layer.b.dtype
        noise = torch.randn_like(layer.weight, dtype=wide) if noise is None else noise
        rows = self.plain[layer.path].to(wide).norm(dim=1).mean()
        weights = (rows.square() + (layer.b.detach() @ layer.a.detach()).norm(dim=1).square()).sqrt()
        gradient = self.size.get(layer.path, torch.zeros_like(weights))
        scale: Tensor = (self.sigma * weights + self.beta * gradient.square()) / len(weights) ** 0.5
        return noise * scale[:, None]

    def after_backward(self, step: int) -> None:
        with torch.no_grad():
            for layer in self.layers:
                layer.weight.copy_(self.plain[layer.path])
                if layer.a.grad is not None and layer.b.grad is not None:
                    self._note(layer, product(layer, layer.a.grad, layer.b.grad))

    def _note(self, layer: Layer, gradient: Tensor) -> None:
        if self.kind == "ggpo":
            self.size[layer.path] = gradient.norm(dim=1)
            return
        size, before = gradient.norm(), self.size.get(layer.path)
        self.size[layer.path] = size if before is None else self.beta * before + (1 - self.beta) * size

    def state(self) -> dict[str, Tensor]:
        return {f"size.{path}": size for path, size in self.size.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        device = {layer.path: layer.weight.device for layer in self.layers}
        self.size = {(path := key.removeprefix("size.")): value.to(device[path]) for key, value in state.items()}
        self.plain = {layer.path: layer.weight.detach().clone() for layer in self.layers}
