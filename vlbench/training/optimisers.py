"""The optimisers of the training loop, and which parameters decay."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

MOMENTUM = 0.9  # of SGD, Nesterov's, as Segmenter and UPop's script for it have it

Name = Literal["adamw", "sgd"]


def build_optimiser(name: Name, net: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Over the parameters of `net` that require a gradient. adamw: torch's betas and epsilon (0.9, 0.999, 1e-8), which
    all published recipes here leave alone. sgd: its weight decay is added to the gradient, AdamW's is decoupled."""
    groups = decay_groups(net, weight_decay)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=MOMENTUM, nesterov=True)
    return torch.optim.AdamW(groups, lr=lr)


def decay_groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms and other one-dimensional parameters do not."""
    trained = [p for p in net.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
