"""The optimisers: which parameters decay, and SGD by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vlbench.training.optimisers import Name, build_optimiser


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_biases_norms_scalars_and_what_is_frozen_do_not_decay(name: Name) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3).requires_grad_(False))
    net.scale = nn.Parameter(torch.tensor(0.5))
    decay, plain = build_optimiser(name, net, lr=0.1, weight_decay=0.05).param_groups
    assert [p.shape for p in decay["params"]] == [(3, 3)]
    assert sorted(tuple(p.shape) for p in plain["params"]) == [(), (3,), (3,), (3,)]
    assert (decay["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)


def test_sgd_is_nesterovs_with_momentum_point_nine() -> None:
    """v <- 0.9 v + g; w <- w - lr (g + 0.9 v), g with the decay's share (Segmenter's optimiser, and UPop's for it)."""
    net = nn.Linear(2, 1, bias=False)
    optimiser = build_optimiser("sgd", net, lr=0.1, weight_decay=0.01)
    weight, velocity = net.weight.detach().double().clone(), torch.zeros(1, 2, dtype=torch.float64)
    for step in range(4):
        gradient = torch.tensor([[1.0 + step, -2.0]])
        net.weight.grad = gradient.clone()
        optimiser.step()
        g = gradient.double() + 0.01 * weight
        velocity = 0.9 * velocity + g
        weight = weight - 0.1 * (g + 0.9 * velocity)
        assert torch.allclose(net.weight.double(), weight, atol=1e-6)


def test_what_decays() -> None:
    """matrices: no vectors; timm: no position embeddings and class tokens either; all: everything."""
    net = nn.Module()
    net.pos_embed = nn.Parameter(torch.ones(1, 2, 3))
    net.inner = nn.Linear(2, 2)
    shapes = {}
    for rule in ("matrices", "timm", "all"):
        decays, _ = build_optimiser("adamw", net, lr=0.1, weight_decay=0.05, decayed=rule).param_groups
        shapes[rule] = [tuple(p.shape) for p in decays["params"]]
    assert shapes == {
        "matrices": [(1, 2, 3), (2, 2)],
        "timm": [(2, 2)],
        "all": [(1, 2, 3), (2, 2), (2,)],
    }
    found = build_optimiser("adamw", net, lr=0.1, weight_decay=0.0, betas=(0.5, 0.9)).param_groups[0]["betas"]
    assert found == (0.5, 0.9)
