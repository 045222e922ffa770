"""Activation checkpointing: the plain gradient, bit for bit, of every family; blocks run twice, little is kept."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.families import FAMILIES, batch_of, gradients, loss, open_model
from vlbench.compression.gates import Gates
from vlbench.training.memory import recomputed


def step(model: Any, *, again: bool, seed: int = 5, half: bool = False) -> dict[str, Tensor]:
    """The gradients of one training step with dropout, as the loop makes it."""
    model.net.train()
    torch.manual_seed(seed)
    with recomputed(model.net, model.structure()) if again else nullcontext():
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            value = loss(model, batch_of(model))
        value.backward()
    return gradients(model.net)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_gradient_is_the_plain_one_bit_for_bit(name: str) -> None:
    model = open_model(name)
    plain = step(model, again=False)
    found = step(model, again=True)
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[k], plain[k]) for k in plain)
    if name != "clip-mini":  # which has no dropout; in the others it is at work
        other = step(model, again=True, seed=6)
        assert any(not torch.equal(other[k], plain[k]) for k in plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_block_that_ran_runs_again(name: str) -> None:
    model = open_model(name)
    paths = [block.path for tower in model.structure().towers for block in tower.blocks]
    runs: Counter[str] = Counter()
    for path in paths:
        block = model.net.get_submodule(path)
        block.register_forward_pre_hook(lambda *_, path=path: runs.update([path]))
        # Hooks run once a call; what is computed again is seen at the first module inside the block that is called.
        inside = next(m for m in block.modules() if isinstance(m, torch.nn.LayerNorm | torch.nn.Linear))
        inside.register_forward_pre_hook(lambda *_, path=path: runs.update([path + " inside"]))
    step(model, again=True)
    assert all(runs[path] > 0 and runs[path + " inside"] == 2 * runs[path] for path in paths)


@pytest.mark.parametrize("name", ["deit-mini", "blip-nlvr-mini"])
@pytest.mark.parametrize("half", [False, True])
def test_gates_get_their_plain_gradient_in_float32(name: str, half: bool) -> None:
    """Under autocast too: what a search adds up is not rounded to 8 bits."""
    found = []
    for again in (False, True):
        model = open_model(name)
        gates = Gates(model.net, model.structure())
        step(model, again=again, half=half)
        assert all(g.grad is not None and g.grad.dtype == torch.float32 for g in gates.value.values())
        found.append(gates.take())
    assert all(torch.equal(found[0][site], found[1][site]) for site in found[0])


def test_what_is_kept_of_the_blocks_is_little() -> None:
    kept = []
    for again in (False, True):
        model, sizes = open_model("deit-mini"), []
        model.net.train()

        def keep(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            recomputed(model.net, model.structure()) if again else nullcontext(),
        ):
            loss(model, batch_of(model))
        kept.append(sum(sizes))
    assert kept[1] < 0.3 * kept[0]


def test_blocks_are_as_before_afterwards() -> None:
    model = open_model("deit-mini")
    block = model.net.get_submodule(model.structure().towers[0].blocks[0].path)
    with recomputed(model.net, model.structure()):
        assert "forward" in vars(block)
    assert "forward" not in vars(block)
    own = block.forward
    block.forward = own
    with recomputed(model.net, model.structure()):
        assert block.forward is not own
    assert vars(block)["forward"] is own
