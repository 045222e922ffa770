"""Oracles: Sheared LLaMA's masked model, recorded; differences of the loss for the gradients of the gates' parameters;
the cut model for the gated one; the record of a whole run for its target and its shape."""

from __future__ import annotations

import importlib
import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tests.compression.test_width import KINDS as MODELS
from tests.lab import Lab
from tests.oracles import Oracle
from vlbench.compression.cut import cut
from vlbench.compression.gates import Gates
from vlbench.compression.saved import load_model
from vlbench.compression.width import WidthGates, entries_left, key_of_width
from vlbench.errors import UserError
from vlbench.nn import llama
from vlbench.pruning import hard_concrete as hc
from vlbench.pruning.l0_search import Search
from vlbench.structure import Structure

l0 = importlib.import_module("vlbench.methods.l0")


def search_of(name: str, **options: object) -> tuple[object, torch.nn.Module, Search, object]:
    kind = MODELS[name]
    net = kind.adopt(kind.build())
    method = l0.L0(l0.L0Options(**{"units": "site+block+width", "sparsity": 0.6, **options}))
    structure = method.units(kind.structure(net))
    counts, sizes = method.counts(structure), method.sizes(structure)
    search = Search(net, structure, method.options, sizes, counts, seed=0)
    with torch.no_grad():
        for n, a in enumerate(search.a.values()):
            a.copy_(torch.randn(a.shape, generator=torch.Generator().manual_seed(n)))
            a.data = a.data.double()
        for n, pair in enumerate(search.pairs.values()):
            pair.first.fill_(0.3 + n)
            pair.second.fill_(0.7)
    return kind, net, search, structure


@pytest.mark.parametrize("target", ["shape", "size"])
def test_gradients_of_the_parameters(target: str) -> None:
    kind, net, search, _ = search_of("deit", target=target, steps=10)

    def value() -> torch.Tensor:
        with torch.no_grad():
            for key, gate in search.gates().items():
                gate.copy_(hc.drawn(search.a[key], search._uniform[key]))
        return kind.run(net).square().mean() + search.lagrangian(3).double()

    torch.manual_seed(0)
    search.before_step(3)
    kind.run(net).square().mean().backward()
    search.after_backward(3)
    for key, a in search.a.items():
        where = int(a.grad.abs().argmax())
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                a[where] += sign * 1e-5
                ends.append(float(value()))
                a[where] -= sign * 1e-5
        assert float(a.grad[where]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=2e-3, abs=1e-5), key
    assert all(pair.first.grad is not None for pair in search.pairs.values())


@pytest.mark.parametrize("name", ["blip_vqa", "llama", "deit"])
def test_the_cut_model_is_the_gated_one(name: str) -> None:
    """Gates of sites as they settle, blocks and dimensions that stay at 1, the others at 0."""
    kind, net, search, structure = search_of(name, sparsity=0.5)
    with torch.no_grad():
        keep = search.kept(search.counts)
        assert {key: len(kept) for key, kept in keep.items()} == search.counts
        assert entries_left(structure, keep) / structure.size == pytest.approx(0.5, abs=0.12)  # of a handful of units
        gates = search.gates()
        for key, kept in keep.items():
            one = torch.zeros_like(gates[key]).index_fill(0, kept, 1.0)
            soft = hc.settled(search.a[key].detach(), len(one) - len(kept)).to(one)
            gates[key].copy_(soft if key in search.sites.value else one)
        want = kind.run(net)
        search.finish(keep)
        small = deepcopy(net)
        cut(small, structure, keep)
        shown = kind.run(small)
        assert float((shown - want).abs().max()) <= 1e-10


def test_a_run_keeps_an_even_shape(lab: Lab) -> None:
    words = ("method=sheared", "sparsity=0.5", "units=site+block+width", "l0.steps=4", "finetune.steps=2")
    told = lab.run(*words, "l0.batch_size=4", "finetune.batch_size=4")
    assert told.code == 0, told.err
    folder = next(p.parent for p in lab.folder.rglob("result.json") if "sheared" in str(p))
    parameters = json.loads((folder / "result.json").read_text())["parameters"]
    _, state = load_model(folder / "model")
    widths = {len(kept) for name, (unit, kept) in state.cuts[0].sites.items() if unit == "neuron"}
    assert len(widths) == 1
    assert parameters["removed"] / parameters["prunable"] == pytest.approx(0.5, abs=0.1)  # whole blocks of few
    kinds = {unit for unit, _ in state.cuts[0].sites.values()}
    assert {"block", "width", "neuron"} <= kinds
    assert set(state.log["l0"]["kept"]) == set(state.cuts[0].sites)


def test_shares_that_are_given_stay() -> None:
    kind = MODELS["deit"]
    structure = kind.structure(kind.adopt(kind.build()))
    method = l0.L0(l0.L0Options(units="site+width", sparsity=0.5, shares="width:0.75"))
    counts = method.counts(method.units(structure))
    assert counts["vision.width"] == 18
    with pytest.raises(UserError, match="units=site has none"):
        l0.L0(l0.L0Options(units="site", shares="width:0.5")).check(structure)
    with pytest.raises(UserError, match=r"shares=width:0.2 removes .* by itself, more than"):
        l0.L0(l0.L0Options(units="site+width", sparsity=0.5, shares="width:0.2")).counts(structure)
    with pytest.raises(ValueError, match=r"share in \(0, 1\]"):
        l0.L0Options(shares="width:2")


def test_a_multiple_that_leaves_nothing_to_remove_is_named() -> None:
    kind = MODELS["deit"]
    structure = kind.structure(kind.adopt(kind.build()))
    with pytest.raises(UserError, match="narrowed here with multiple_of=512: at most 0"):
        l0.L0(l0.L0Options(units="site", sparsity=0.5, multiple_of=512)).check(structure)


def test_width_is_refused_where_it_cannot_go() -> None:
    kind = MODELS["t5"]
    with pytest.raises(UserError, match="cannot be narrowed"):
        l0.L0(l0.L0Options(units="site+width")).check(kind.structure(kind.adopt(kind.build())))


def masked_llama(oracle: Oracle) -> tuple[nn.Module, Structure]:
    """The recorded model as transformers has it."""
    facts = oracle.facts
    config = LlamaConfig(
        vocab_size=facts["vocab"], hidden_size=facts["d_model"], intermediate_size=facts["intermediate"],
        num_hidden_layers=facts["layers"], num_attention_heads=facts["heads"], rms_norm_eps=facts["rms_norm_eps"],
    )  # fmt: skip
    net = LlamaForCausalLM(config).double().eval()
    names = {
        "wte": "embed_tokens", "blocks": "layers", "ln_1": "input_layernorm", "ln_2": "post_attention_layernorm",
        "attn.wq": "self_attn.q_proj", "attn.wk": "self_attn.k_proj", "attn.wv": "self_attn.v_proj",
        "attn.out_proj": "self_attn.o_proj", "ln_f": "norm",
    }  # fmt: skip
    weights = {}
    for key, value in oracle.tensors("weight/").items():
        name = key.removeprefix("transformer.")
        for old, new in names.items():
            name = name.replace(f"{old}.", f"{new}.") if f"{old}." in name else name
        weights["lm_head.weight" if name == "output.weight" else f"model.{name}"] = value
    net.load_state_dict(weights)
    return llama.adopt(net), Structure((llama.tower(net, "model.layers", read_by=["lm_head"]),))


@torch.no_grad()
def test_masked_and_cut_models_are_the_recorded_ones(shared: Path) -> None:
    """Soft and zero masks of heads, neurons, blocks and width in one model; and the cut that leaves the head alone,
    which the released extraction multiplies by the width's masks once more."""
    oracle = Oracle(shared / "oracles" / "neighbours" / "sheared_masked_llama_a.npz")
    net, structure = masked_llama(oracle)
    structure = l0.L0(l0.L0Options()).units(structure)
    assert torch.allclose(net(oracle["ids"]).logits, oracle["logits_dense"], atol=1e-5)
    hidden, (tower,) = oracle["hidden_z"], structure.towers
    gates, widths = Gates(net, structure), WidthGates(net, structure)
    values = {}
    for number in range(oracle.facts["layers"]):
        attention, ffn = tower.blocks[number].sites
        values[attention.name] = oracle["head_z"][number].flatten() * oracle["head_layer_z"][number]
        values[ffn.name] = oracle["intermediate_z"][number].flatten() * oracle["mlp_z"][number]
    gates.set(values)
    widths.set({key_of_width(tower): hidden})
    assert torch.allclose(net(oracle["ids"]).logits, oracle["logits_masked"], atol=1e-5)
    widths.remove()
    gates.fold()
    for part in tower.stream.slices:  # what writes the stream and its norms take the width's masks in
        if part.param.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight", "norm.weight")):
            parameter = net.get_parameter(part.param)
            parameter.mul_(hidden.view(-1, 1) if part.dim == 0 and parameter.ndim == 2 else hidden)
    keep = {name: value.nonzero().flatten() for name, value in values.items()}
    cut(net, structure, {**keep, key_of_width(tower): hidden.nonzero().flatten()})
    assert torch.allclose(net(oracle["ids"]).logits, oracle["logits_pruned_head_not_scaled"], atol=1e-5)
