"""Oracle: only_train_once's saliency on adapters and its hybrid optimiser (recorded), and the cut model for the shrunk
one."""

from __future__ import annotations

import importlib
import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.compression.test_width import KINDS as MODELS
from tests.lab import Lab
from tests.oracles import Oracle
from vlbench.compression.cut import cut
from vlbench.compression.saved import load_model
from vlbench.nn.adapted import attach
from vlbench.restoring.adapters import merge
from vlbench.structure import Block, Site, Slice, Structure, Tower

lhspg = importlib.import_module("vlbench.methods.lhspg")


def toy(oracle: Oracle) -> tuple[nn.Module, Structure]:
    net = nn.Module()
    for name in ("fc1", "q"):
        weight = oracle[f"init/{name}.weight"]
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False).double()
        layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
        attach(layer, oracle[f"init/{name}.lora_A.weight"].clone(), oracle[f"init/{name}.lora_B.weight"].clone(), 1.0)
        setattr(net, name, layer)
    rows = {"fc1": torch.arange(6)[:, None], "q": torch.arange(6).view(3, 2)}
    sites = [
        Site(site, kind, "language", unit, (Slice(f"{name}.weight", (6, 5), 0, rows[name], True),))
        for site, kind, unit, name in (("ffn", "ffn", "neuron", "fc1"), ("heads", "attention", "head", "q"))
    ]
    return net, Structure((Tower("t", (Block("", tuple(sites)),)),))


@pytest.fixture
def oracle(shared: Path) -> Oracle:
    return Oracle(shared / "oracles" / "neighbours" / "oto_lora_hybrid_a.npz")


def test_saliency(oracle: Oracle) -> None:
    net, structure = toy(oracle)
    for site in structure.sites:
        for name, score in lhspg.saliency(net, site).items():
            assert torch.allclose(score, oracle[f"lora_score/{site.name}/{name}"], atol=1e-12, rtol=0), name


@torch.no_grad()
def published_step(
    p: nn.Parameter, moments: dict[int, tuple[torch.Tensor, torch.Tensor, int]], lr: float, decay: float
) -> None:
    """The repository's AdamW: both moments begin with the first gradient (and its square), and are corrected as if they
    had begun with 0."""
    first, second, t = moments.get(id(p), (p.grad, p.grad.square(), 0))
    if t:
        first, second = 0.9 * first + 0.1 * p.grad, 0.999 * second + 0.001 * p.grad.square()
    moments[id(p)] = first, second, t + 1
    p.mul_(1 - lr * decay)
    p -= lr * (first / (1 - 0.9 ** (t + 1))) / ((second / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8)


def test_shrinking(oracle: Oracle) -> None:
    """Given the recorded gradients and redundant groups: warm-up, shrinking, and two steps beyond."""
    net, structure = toy(oracle)
    facts = oracle.facts
    options = lhspg.LhspgOptions(
        steps=facts["training_steps"], learning=facts["warm_up_steps"] / facts["training_steps"]
    )
    assert options.warm == facts["warm_up_steps"]
    hook = lhspg.Shrink(net, structure, options, set())
    hook.keep = {
        site.name: torch.tensor([u for u in range(site.units) if u not in facts["redundant"][site.name]])
        for site in structure.sites
    }
    names = {"fc1": net.fc1, "q": net.q}
    trained = [p for layer in names.values() for p in (layer.lora_a, layer.lora_b)]
    moments: dict[int, tuple[torch.Tensor, torch.Tensor, int]] = {}
    for step in range(1, 9):
        for name, layer in names.items():
            layer.lora_a.grad = oracle[f"grad/{step}/{name}.lora_A.weight"].clone()
            layer.lora_b.grad = oracle[f"grad/{step}/{name}.lora_B.weight"].clone()
        hook.after_backward(step - 1)
        for parameter in (p for p in trained if p.grad is not None):
            published_step(parameter, moments, facts["lr"], facts["weight_decay"])
        hook.after_step(step - 1)
        for name, layer in names.items():
            tensors = {"weight": layer.weight, "lora_A.weight": layer.lora_a, "lora_B.weight": layer.lora_b}
            for part, parameter in tensors.items():
                wanted = oracle[f"param/{step}/{name}.{part}"]
                assert torch.allclose(parameter.detach(), wanted, atol=1e-12, rtol=0), (step, name, part)


def test_the_cut_model_is_the_shrunk_one() -> None:
    kind = MODELS["llama"]
    net = kind.adopt(kind.build())
    method = lhspg.Lhspg(lhspg.LhspgOptions(rank=2))
    structure = method.units(kind.structure(net))
    paths = [name.removesuffix(".weight") for name in structure.matrices]
    for path in paths:
        lhspg.attach_zero(net.get_submodule(path), 2, 4.0)
        nn.init.normal_(net.get_submodule(path).lora_b, std=0.1)
    keep = {site.name: torch.arange(0, site.units, 2) for site in structure.sites}
    with torch.no_grad():
        lhspg.shrink(net, structure, keep, 0.0)
        merge(net, dict.fromkeys(paths, 2))
        want = kind.run(net)
        small = deepcopy(net)
        cut(small, structure, keep)
        assert float((kind.run(small) - want).abs().max()) <= 1e-10


def test_a_run_meets_the_target_and_protects(lab: Lab) -> None:
    lhspg_words = ("lhspg.steps=6", "protect=0.25", "protect_samples=8", "lhspg.batch_size=4", "lhspg.rank=2")
    lora_words = ("lora.steps=2", "lora.batch_size=4", "lora.ranks=vision:2", "lora.warmup=0")
    told = lab.run("method=lorashear", "sparsity=0.3", *lhspg_words, *lora_words)
    assert told.code == 0, told.err
    folder = next(p.parent for p in lab.folder.rglob("result.json") if "lorashear" in str(p))
    parameters = json.loads((folder / "result.json").read_text())["parameters"]
    assert parameters["removed"] / parameters["prunable"] == pytest.approx(0.3, abs=0.05)
    model, state = load_model(folder / "model")
    (safe,) = state.log["lhspg"]["protected"]
    original = {"attention": 2, "ffn": 64}[safe.rpartition(".")[2]]
    assert model.structure().site(safe).units == original or len(dict(state.cuts[0].sites)[safe][1]) == original
