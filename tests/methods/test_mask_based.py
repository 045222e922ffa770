"""Mask-based pruning: gates trained with an L1 penalty, folded into the weights, a uniform ratio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.methods.killed import killed_and_resumed, same_weights
from tests.pruning.toy import random_blocks
from vlbench.cell.resolve import resolve
from vlbench.checks.tiny import Workshop
from vlbench.compression.cut import cut
from vlbench.compression.gates import Gates
from vlbench.machine.ui import Screen
from vlbench.plugins.table import forget, table
from vlbench.pruning.learned_gates import LearnedGates
from vlbench.training.loop import Schedule

PENALTY = {"mlp.0": 0.02, "mlp.1": 0.3}


def test_gates_follow_adam_on_the_loss_and_the_penalty() -> None:
    """Against one graph: gates as multipliers of the hidden layer, |gate| in the loss, torch's own Adam."""
    net, structure = random_blocks((6, 10), (6, 10))
    net.double()
    schedule = Schedule(steps=8, lr=0.05, decay="cosine", warmup=2)
    gates = Gates(net, structure)
    hook = LearnedGates(gates, PENALTY, schedule)
    weights = [(b.fc1.weight.detach().clone(), b.fc2.weight.detach().clone()) for b in net]  # type: ignore[union-attr, operator]
    plain = [torch.ones(10, dtype=torch.float64, requires_grad=True) for _ in weights]
    adam = torch.optim.Adam(plain, lr=1.0)
    rng = torch.Generator().manual_seed(1)
    for step in range(8):
        x = torch.randn(5, 6, dtype=torch.float64, generator=rng)
        net(x).square().mean().backward()
        hook.after_backward(step)
        hook.after_step(step)
        y = x
        for (up, down), gate in zip(weights, plain, strict=True):
            y = y + torch.relu((y @ up.T) * gate) @ down.T
        loss = y.square().mean()
        for gate, strength in zip(plain, PENALTY.values(), strict=True):
            loss = loss + strength * gate.abs().sum()
        adam.zero_grad()
        loss.backward()
        adam.param_groups[0]["lr"] = schedule.lr_at(step)
        adam.step()
        net.zero_grad()
        for name, gate in zip(PENALTY, plain, strict=True):
            assert torch.allclose(gates.value[name], gate, rtol=0, atol=1e-12), (step, name)
    assert all(float((g.detach() - 1).abs().min()) > 0 for g in plain)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    forget()
    return Workshop(table("methods").get("mask_based_search"), tmp_path_factory.mktemp("work"), Screen(quiet=True))


def drawn(structure: Any) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(3)
    return {s.name: torch.rand(s.units, generator=rng) + 0.5 for s in structure.sites}


@pytest.mark.parametrize("unit", ["dim", "head"])
def test_folding_keeps_the_function(workshop: Workshop, unit: str) -> None:
    """Fused qkv with biases: q and k see their gate, so that the logits see its square. Units of gate 0 go."""
    model = workshop.model()
    structure = model.structure().with_units(lambda s: unit if s.kind == "attention" else s.unit)
    gates = Gates(model.net, structure)
    values = drawn(structure)
    keep = {n: (v > 0.8).nonzero().flatten() for n, v in values.items()}
    keep = {n: k if len(k) else torch.tensor([0]) for n, k in keep.items()}
    gates.set({n: torch.zeros_like(v).index_copy(0, keep[n], v[keep[n]]) for n, v in values.items()})
    gated = workshop.outputs(model)
    gates.fold()
    assert torch.allclose(workshop.outputs(model), gated, rtol=0, atol=1e-5)
    cut(model.net, structure, keep)
    assert torch.allclose(workshop.outputs(model), gated, rtol=0, atol=1e-5)


def test_every_site_loses_the_units_of_its_smallest_gates(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Mapping[str, Tensor]] = []
    plain = Gates.fold

    def fold(gates: Gates) -> None:
        trained.append({n: g.detach().clone() for n, g in gates.value.items()})
        plain(gates)

    monkeypatch.setattr(Gates, "fold", fold)
    words = {"mask_based_search.steps": "4", "mask_based_search.lr": "0.05", "mask_based_search.sparsity": "0.75"}
    outcome = workshop.run(words)
    for name, (_, kept) in outcome.state.cuts[0].sites.items():
        gates = trained[0][name].abs()
        assert len(kept) == round(len(gates) / 4)
        others = [i for i in range(len(gates)) if i not in kept]
        assert float(gates[kept].min()) >= float(gates[others].max())
        assert float((gates - 1).abs().max()) > 0.05
    assert (outcome.state.steps, outcome.state.samples_seen) == (4, 32)


def test_the_penalty_draws_gates_to_zero(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    plain = Gates.fold

    def fold(gates: Gates) -> None:
        ffn = [gates.value[s.name].detach() for s in gates.structure.sites if s.kind == "ffn"]
        seen.append(float(torch.cat(ffn).mean()))
        plain(gates)

    monkeypatch.setattr(Gates, "fold", fold)
    for strength in ("0", "10"):
        workshop.run(
            {"mask_based_search.steps": "4", "mask_based_search.l1_ffn": strength, "mask_based_search.lr": "0.05"}
        )
    assert seen[1] == pytest.approx(0.8, abs=0.01)  # four steps of Adam of one sign
    assert seen[1] < seen[0]


def test_paper_has_upops_lengths_and_strengths() -> None:
    words = {"suite": "full", "recipe": "paper", "sparsity": "0.75", "task": "vqav2"}
    ours, theirs = (resolve({**words, "method": method}).links for method in ("mask_based", "upop"))
    assert ours[1].options == theirs[1].options
    for key in ("steps", "lr", "batch_size", "weight_decay", "decay"):
        assert getattr(ours[0].options, key) == getattr(theirs[0].options, key)
    assert (ours[0].options.l1_attention, ours[0].options.l1_ffn) == pytest.approx((1.8e-3, 6.25e-5))  # type: ignore[attr-defined]


def test_a_killed_training_resumes_to_the_same_bits(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"mask_based_search.steps": "6", "mask_based_search.lr": "1e-2"}
    whole = workshop.run(words)
    again = killed_and_resumed(workshop, words, monkeypatch, after=3)
    assert same_weights(whole, again)
    assert whole.state == again.state
