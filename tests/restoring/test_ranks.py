"""Oracles: peft's AdaLoRA for the allocation, the singular values for what is left of a rank, counting for the rest."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import peft
import pytest
import torch
from peft.tuners.adalora.layer import RankAllocator
from torch import Tensor, nn

from vlbench.nn.adapted import Adapted, attach
from vlbench.plugins.table import table
from vlbench.restoring.ranks import Allocated, Budget, HighThenLow, Mixed

STEPS, WAIT, SETTLE, FIRST, LAST = 12, 2, 3, 6, 4


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(10, 8, bias=False), nn.Linear(8, 9, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.two(torch.tanh(self.one(x)))
        return made


def adalora() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    net = Net().double().requires_grad_(False)
    config = peft.AdaLoraConfig(
        target_modules="one|two",
        init_r=FIRST,
        target_r=LAST,
        tinit=WAIT,
        tfinal=SETTLE,
        total_step=STEPS,
        lora_dropout=0,
    )
    peft.inject_adapter_in_model(config, net, "default")
    for layer in (net.one, net.two):
        for kind in ("lora_A", "lora_E", "lora_B"):
            values: Any = getattr(layer, kind)["default"]
            values.data = torch.randn_like(values, dtype=torch.float64) * 0.3
    return net, config


def three(net: Any) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    return {n: tuple(getattr(net.get_submodule(n), f"lora_{k}")["default"] for k in "AEB") for n in ("one", "two")}


def step_of_peft(model: Any, config: Any, allocator: Any, number: int) -> None:
    """As AdaLoraModel.update_and_allocate."""
    if number < STEPS - SETTLE:
        allocator.update_and_allocate(model, number)
    elif number == STEPS - SETTLE:
        config.rank_pattern = allocator.update_and_allocate(model, number, force_mask=True)[1]
    else:
        allocator.mask_using_rank_pattern(model, config.rank_pattern)


@pytest.mark.parametrize("resumed", [0, 5, 10])
def test_dynamic_is_pefts(resumed: int) -> None:
    """Every factor after every step of a training; with the hook made anew after some."""
    (theirs, config), (ours, _) = adalora(), adalora()
    allocator = RankAllocator(theirs, config, "default")
    budget = Budget(2 * FIRST, 2 * LAST, STEPS, WAIT, SETTLE)
    hook = Allocated(three(ours), budget)
    optimisers = [
        torch.optim.AdamW([p for n, p in net.named_parameters() if "lora" in n], lr=0.02) for net in (theirs, ours)
    ]
    left = []
    for step in range(STEPS):
        if resumed and step == resumed:
            kept = {name: value.clone() for name, value in hook.state().items()}
            hook = Allocated(three(ours), budget)
            hook.restore(kept)
        x = torch.randn(7, 10, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        regular = torch.stack([
            torch.norm(c - torch.eye(FIRST, dtype=torch.float64))
            for q, _, p in three(theirs).values() for c in (q @ q.T, p.T @ p)
        ]).mean()  # fmt: skip
        (theirs(x).square().mean() + 0.5 * regular).backward()
        ours(x).square().mean().backward()
        hook.after_backward(step)
        for optimiser in optimisers:
            optimiser.step()
        step_of_peft(theirs, config, allocator, step + 1)
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        hook.after_step(step)
        for (name, one), (_, other) in zip(theirs.named_parameters(), ours.named_parameters(), strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-12), (step, name)
        left.append(sum(int((e != 0).sum()) for _, e, _ in three(ours).values()))
    assert left[0] == 2 * FIRST
    assert left[-1] == 2 * LAST
    assert left == sorted(left, reverse=True)


def adapted(rank: int) -> Net:
    torch.manual_seed(1)
    net = Net().double().requires_grad_(False)
    for layer in (net.one, net.two):
        rows, columns = layer.weight.shape
        attach(
            layer, torch.randn(rank, columns, dtype=torch.float64), torch.randn(rows, rank, dtype=torch.float64), 0.5
        )
    return net


def factors(net: Net) -> list[tuple[Tensor, Tensor]]:
    layers: list[Any] = [net.one, net.two]
    assert all(isinstance(layer, Adapted) for layer in layers)
    return [(layer.lora_a, layer.lora_b) for layer in layers]


def train(net: Net, hook: Any, steps: int) -> list[list[Tensor]]:
    """Products after every step."""
    optimiser = torch.optim.AdamW([p for pair in factors(net) for p in pair], lr=0.01, weight_decay=0.0)
    hook.bound(optimiser)
    products = []
    for step in range(steps):
        torch.manual_seed(step)
        hook.before_step(step)
        net(torch.randn(7, 10, dtype=torch.float64)).square().mean().backward()
        hook.after_backward(step)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        hook.after_step(step)
        products.append([(b @ a).detach().clone() for a, b in factors(net)])
    return products


def test_warmup_keeps_the_nearest_product_and_the_rank() -> None:
    plain, cut = adapted(5), adapted(5)
    ranks = {"one": 2, "two": 3}
    before = train(plain, HighThenLow(plain, dict.fromkeys(ranks, 5), 9), 4)
    after = train(cut, HighThenLow(cut, ranks, 4), 7)
    for number, rank in enumerate(ranks.values()):
        u, s, v = torch.linalg.svd(before[3][number])
        assert torch.allclose(after[3][number], u[:, :rank] * s[:rank] @ v[:rank], atol=1e-10)
        assert torch.linalg.matrix_rank(after[-1][number]) == rank
        assert not torch.equal(after[-1][number], after[3][number])  # it goes on learning
        a, b = factors(cut)[number]
        assert not a[rank:].any()
        assert not b[:, rank:].any()


def test_mixed_moves_the_first_columns_alone() -> None:
    net = adapted(4)
    hook = Mixed(net)
    drawn = set()
    for step in range(12):
        before = [(a.detach().clone(), b.detach().clone()) for a, b in factors(net)]
        torch.manual_seed(step)
        hook.before_step(step)
        rank = hook._rank
        drawn.add(rank)
        assert all(not b[:, rank:].any() for _, b in factors(net))
        net(torch.randn(7, 10, dtype=torch.float64)).square().mean().backward()
        hook.after_backward(step)
        for (a, b), (a0, b0) in zip(factors(net), before, strict=True):
            assert torch.equal(b, b0)
            assert torch.equal(a, a0)
            assert a.grad is not None
            assert b.grad is not None
            assert a.grad[:rank].any()
            assert not a.grad[rank:].any()
            assert not b.grad[:, rank:].any()
            a.grad = b.grad = None
    assert drawn == {1, 2, 3, 4}


def options(**given: Any) -> Any:
    return table("methods").get("lora").load().Options(**given)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"rank_start": 16}, "rank_start= has a meaning with rank_schedule=warmup or dynamic only"),
        ({"rank_schedule": "warmup", "rank_start": 8}, "rank_start=8 should be above rank=8"),
        ({"rank_schedule": "dynamic", "perturb": "mgpo"}, "perturb=mgpo is of adapters of a fixed rank"),
    ],
)
def test_options_without_a_meaning_are_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        options(**given)


def test_the_first_rank_and_identities() -> None:
    assert options(rank_schedule="warmup").first_rank(8) == 16
    assert options(rank_schedule="dynamic").first_rank(8) == 12
    assert options(rank_schedule="warmup", rank_start=24).first_rank(4) == 12  # of a tower whose rank is another
    assert not any(name.startswith("rank_") for name in options().recorded())
    assert deepcopy(options()).rank_schedule == "fixed"
