"""The optimisers of the training loop, and which parameters decay."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

MOMENTUM = 0.9  # of SGD, Nesterov's, as Segmenter and UPop's script for it have it

Name = Literal["adamw", "sgd"]


Decayed = Literal["matrices", "all", "timm"]
# Of a vision transformer: what timm's models name as not decayed, whatever its shape.
EXEMPT = ("pos_embed", "cls_token", "dist_token")


def build_optimiser(
    name: Name,
    net: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    decayed: Decayed = "matrices",
) -> torch.optim.Optimizer:
    """Over the parameters of `net` that require a gradient. adamw: epsilon 1e-8, which all published recipes here leave
    alone. sgd: its weight decay is added to the gradient, AdamW's is decoupled; betas are AdamW's."""
    groups = decay_groups(net, weight_decay, decayed)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=MOMENTUM, nesterov=True)
    return torch.optim.AdamW(groups, lr=lr, betas=betas)


def decay_groups(net: nn.Module, weight_decay: float, decayed: Decayed = "matrices") -> list[dict[str, Any]]:
    """matrices: biases, norms and other one-dimensional parameters do not decay. all: everything does, as in BLIP's and
    CLIP's scripts. timm: neither do the position embeddings and class tokens, as in DeiT's."""
    trained = [(name, p) for name, p in net.named_parameters() if p.requires_grad]

    def decays(name: str, p: nn.Parameter) -> bool:
        exempt = decayed == "timm" and name.rpartition(".")[2] in EXEMPT
        return decayed == "all" or (p.ndim > 1 and not exempt)

    return [
        {"params": [p for name, p in trained if decays(name, p)], "weight_decay": weight_decay},
        {"params": [p for name, p in trained if not decays(name, p)], "weight_decay": 0.0},
    ]
