"""Oracle: Sheared LLaMA's l0_module (recorded), with a target shape and with a size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tests.oracles import Oracle
from vlbench.nn import llama
from vlbench.pruning import hard_concrete as hc
from vlbench.structure import Structure

KINDS = ("head", "intermediate", "layer", "hidden")


@pytest.fixture
def oracle(shared: Path) -> Oracle:
    return Oracle(shared / "oracles" / "neighbours" / "sheared_l0_a.npz")


def parameters(oracle: Oracle, case: str) -> dict[str, Tensor]:
    by_kind = {kind: oracle[f"{case}/z_loga/{kind}"].clone() for kind in KINDS}
    for a in by_kind.values():
        hc.clamp(a)
        a.requires_grad_(True)
    return by_kind


@pytest.mark.parametrize("case", ["target", "global"])
def test_drawn_gates_and_their_gradients(oracle: Oracle, case: str) -> None:
    for kind, a in parameters(oracle, case).items():
        assert torch.equal(a.detach(), oracle[f"{case}/clamped/{kind}"])
        z = hc.drawn(a, oracle[f"{case}/eps/{kind}"])
        name = "mlp_z" if kind == "layer" else f"{kind}_z"
        assert torch.allclose(z.flatten(), oracle[f"{case}/train/{name}"].flatten(), atol=1e-9, rtol=0)
        (z.flatten() * torch.linspace(-1, 1, z.numel(), dtype=z.dtype)).sum().backward()
        assert torch.allclose(a.grad, oracle[f"{case}/train_grad/{kind}"], atol=1e-9, rtol=0)


def test_gates_without_a_draw(oracle: Oracle) -> None:
    case = "target"
    base, target = (
        dict(zip(("hidden", "head", "layer", "intermediate"), oracle.facts[k], strict=True)) for k in ("base", "target")
    )
    for kind, a in parameters(oracle, case).items():
        name = "mlp_z" if kind == "layer" else f"{kind}_z"
        for rule, gone in (("eval_current", None), ("eval_target", base[kind] - target[kind])):
            rows = [hc.settled(row, gone) for row in a.detach().view(-1, a.shape[-1])]
            wanted = oracle[f"{case}/{rule}/{name}"].flatten()
            assert torch.allclose(torch.cat(rows), wanted, atol=1e-9, rtol=0)
        assert torch.allclose(hc.keep_probability(a), oracle[f"{case}/score/{kind}"], atol=1e-9, rtol=0)
        assert torch.allclose(hc.expected_sparsity(a), oracle[f"{case}/sparsity/{kind}"], atol=1e-9, rtol=0)


@pytest.mark.parametrize("step", [0, 4, 8, 24])
def test_lagrangian_of_a_shape(oracle: Oracle, step: int) -> None:
    a = parameters(oracle, "target")
    base, target = (
        dict(zip(("hidden", "head", "layer", "intermediate"), oracle.facts[k], strict=True)) for k in ("base", "target")
    )
    pairs = {
        k: hc.Pair(*(oracle[f"target/lambda_{i}_{k}"].clone().requires_grad_(True) for i in (1, 2))) for k in KINDS
    }
    warmup = oracle.facts["lagrangian_warmup_steps"]
    total = sum(
        pairs[k].term(hc.expected_sparsity(a[k]) - hc.target_at(1 - target[k] / base[k], step, warmup)) for k in KINDS
    )
    assert torch.is_tensor(total)
    assert float(total) == pytest.approx(float(oracle[f"target/lagrangian/{step}"]), abs=1e-9)
    total.backward()
    for kind in KINDS:
        assert torch.allclose(a[kind].grad, oracle[f"target/lagrangian_grad/{step}/{kind}"], atol=1e-9, rtol=0)
        for number, multiplier in ((1, pairs[kind].first), (2, pairs[kind].second)):
            assert torch.allclose(
                multiplier.grad, oracle[f"target/lagrangian_grad/{step}/lambda_{number}_{kind}"], atol=1e-9
            )


@pytest.mark.parametrize("step", [0, 4, 8, 24])
def test_lagrangian_of_a_size(oracle: Oracle, step: int) -> None:
    """The expected entries are those of a Llama of the module's sizes, as this library describes it."""
    width, heads, layers, hidden = oracle.facts["base"]
    config = LlamaConfig(
        hidden_size=width, num_attention_heads=heads, num_hidden_layers=layers, intermediate_size=hidden, vocab_size=8
    )
    net = llama.adopt(LlamaForCausalLM(config))
    structure = Structure((llama.tower(net, read_by=["lm_head"]),)).with_units(
        lambda s: "head" if s.variants else s.unit
    )
    assert structure.size == int(oracle["global/prunable_size"])
    a = parameters(oracle, "global")
    keep = {"language.width": hc.keep_probability(a["hidden"]), "language.blocks": hc.keep_probability(a["layer"])}
    for layer in range(layers):
        keep[f"language.{layer}.attention"] = hc.keep_probability(a["head"][layer])
        keep[f"language.{layer}.ffn"] = hc.keep_probability(a["intermediate"][layer])
    left = hc.expected_entries(structure, keep)
    assert float(left) == pytest.approx(float(oracle["global/expected_params"]), abs=1e-5)
    pair = hc.Pair(*(oracle[f"global/lambda_{i}"].clone().requires_grad_(True) for i in (1, 2)))
    target = hc.target_at(float(oracle["global/target_sparsity"]), step, oracle.facts["lagrangian_warmup_steps"])
    total = pair.term(1 - left / structure.size - target)
    assert float(total) == pytest.approx(float(oracle[f"global/lagrangian/{step}"]), abs=1e-9)
    total.backward()
    for kind in KINDS:
        assert torch.allclose(a[kind].grad, oracle[f"global/lagrangian_grad/{step}/{kind}"], atol=1e-9, rtol=0)


def test_expected_entries_are_counted_where_nothing_is_uncertain(oracle: Oracle) -> None:
    """Against entries_left, of units that surely stay or surely go."""
    from tests.compression.test_width import KINDS as MODELS
    from vlbench.compression.width import entries_left, streams

    kind = MODELS["blip_vqa"]
    structure = kind.structure(kind.adopt(kind.build()))
    kept = {s.name: torch.arange(0, s.units, 2) for s in structure.sites}
    kept |= {k: torch.arange(0, s.width, 3) for k, s in streams(structure).items()}
    sizes = {**{s.name: s.units for s in structure.sites}, **{k: s.width for k, s in streams(structure).items()}}
    sure = {k: torch.zeros(sizes[k]).index_fill(0, v, 1.0) for k, v in kept.items()}
    assert float(hc.expected_entries(structure, sure)) == entries_left(structure, kept)
