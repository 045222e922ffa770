"""Oracle: only_train_once's HESSO, recorded over a whole training, of both optimisers; and the record of a run."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.lab import Lab
from tests.methods.test_lhspg import published_step
from tests.oracles import Oracle
from vlbench.errors import UserError
from vlbench.structure import Block, Site, Slice, Structure, Tower

DECAY = {"sgd": 0.0, "adamw": 0.01}  # what the recordings were made with
hesso = importlib.import_module("vlbench.methods.hesso")


def toy(oracle: Oracle) -> tuple[nn.Module, Structure]:
    """fc1's rows with their biases are neurons; rows of q, k and v are heads; `out` is not prunable."""
    net, facts, init = nn.Module(), oracle.facts, oracle.tensors("init/")
    for name in ("fc1", "q", "k", "v", "out"):
        weight = init[f"{name}.weight"]
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=f"{name}.bias" in init).double()
        layer.load_state_dict({key.partition(".")[2]: v for key, v in init.items() if key.startswith(f"{name}.")})
        setattr(net, name, layer)
    neurons = torch.arange(len(init["fc1.weight"]))[:, None]
    heads = torch.arange(facts["heads"] * facts["head_dim"]).view(facts["heads"], facts["head_dim"])
    of_ffn = tuple(Slice(f"fc1.{key}", tuple(init[f"fc1.{key}"].shape), 0, neurons, True) for key in ("weight", "bias"))
    of_heads = tuple(Slice(f"{n}.weight", tuple(init[f"{n}.weight"].shape), 0, heads, True) for n in ("q", "k", "v"))
    sites = (Site("ffn", "ffn", "language", "neuron", of_ffn), Site("heads", "attention", "language", "head", of_heads))
    return net, Structure((Tower("t", (Block("", sites),)),))


@pytest.mark.parametrize("variant", ["sgd", "adamw"])
def test_the_whole_training(shared: Path, variant: str) -> None:
    """Weights after every step, scores and units where they are chosen, given the recorded gradients."""
    oracle = Oracle(shared / "oracles" / "neighbours" / f"oto_hesso_{variant}_a.npz")
    facts, (net, structure) = oracle.facts, toy(oracle)
    steps = facts["start_pruning_step"] + facts["pruning_steps"]
    options = hesso.HessoOptions(
        steps=steps, learning=facts["start_pruning_step"] / steps, settling=0, periods=facts["pruning_periods"],
        sparsity=facts["target_group_sparsity"], budget="groups",
    )  # fmt: skip
    hook = hesso.FallingOut(net, structure, options)
    kind = torch.optim.AdamW if variant == "adamw" else torch.optim.SGD
    hook.bound(kind(net.parameters(), lr=facts["lr"], weight_decay=DECAY[variant]))
    found: dict[str, dict[str, torch.Tensor]] = {}
    original, moments = hesso.scores, {}
    hesso.scores = lambda *given: found.update(original(*given)) or found
    try:
        for step in range(1, facts["total"] + 1):
            found.clear()
            for name, parameter in net.named_parameters():
                parameter.grad = oracle[f"grad/{step}/{name}"].clone()
            hook.after_backward(step - 1)
            for parameter in net.parameters():
                if variant == "adamw":
                    published_step(parameter, moments, facts["lr"], DECAY[variant])
                else:
                    parameter.data -= facts["lr"] * parameter.grad
            hook.after_step(step - 1)
            for name, parameter in net.named_parameters():
                wanted = oracle[f"param/{step}/{name}"]
                assert torch.allclose(parameter.detach(), wanted, rtol=0, atol=1e-12), (step, name)
            for site, flags in hook.gone.items():
                gone, redundant = oracle[f"pruned/{step}/{site}"], oracle[f"redundant/{step}/{site}"]
                assert flags.nonzero().flatten().tolist() == sorted(gone.tolist())
                assert hook.redundant[site].nonzero().flatten().tolist() == sorted(redundant.tolist())
            wanted_scores = oracle.tensors(f"score/{step}/")
            assert bool(wanted_scores) == bool(found)
            for key, value in wanted_scores.items():
                site, _, what = key.partition("/")
                assert torch.allclose(found[site][what], value, rtol=0, atol=1e-12), (step, key)
    finally:
        hesso.scores = original


def test_a_run_meets_the_target(lab: Lab) -> None:
    words = ("steps=10", "hesso.batch_size=4", "periods=2")
    told = lab.run("method=hesso", "sparsity=0.5", *words)
    assert told.code == 0, told.err
    folder = next(p.parent for p in lab.folder.rglob("result.json") if "hesso" in str(p))
    parameters = json.loads((folder / "result.json").read_text())["parameters"]
    assert parameters["removed"] / parameters["prunable"] == pytest.approx(0.5, abs=0.05)


def test_too_few_steps_are_refused(lab: Lab) -> None:
    assert "periods=20 are more than steps=10 hold" in lab.refused_run("method=hesso", "steps=10", "periods=20")
    with pytest.raises(UserError, match="periods=8"):
        hesso.Hesso(hesso.HessoOptions(steps=8, periods=8)).check(Structure(()))
