"""Oracle: only_train_once's DHSPG, recorded over a whole training; and the record of a run."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.lab import Lab
from tests.oracles import Oracle
from vlbench.structure import Block, Site, Slice, Structure, Tower

dhspg = importlib.import_module("vlbench.methods.dhspg")
STEPS = 30


def toy(oracle: Oracle) -> tuple[nn.Module, Structure]:
    """A group is a row of a Linear with its bias."""
    net, init, sites = nn.Module(), oracle.tensors("init/"), []
    for name in ("fc1", "fc2"):
        keys = [key for key in ("weight", "bias") if f"{name}.{key}" in init]
        weight = init[f"{name}.weight"]
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in keys).double()
        layer.load_state_dict({key: init[f"{name}.{key}"] for key in keys})
        setattr(net, name, layer)
        rows = torch.arange(len(weight))[:, None]
        parts = tuple(Slice(f"{name}.{key}", tuple(init[f"{name}.{key}"].shape), 0, rows, True) for key in keys)
        sites.append(Site(name, "ffn", "language", "neuron", parts))
    return net, Structure((Tower("t", (Block("", tuple(sites)),)),))


def test_the_whole_training(shared: Path) -> None:
    """Weights after every step and the penalised units, given the recorded gradients."""
    oracle = Oracle(shared / "oracles" / "neighbours" / "oto_dhspg_a.npz")
    facts, (net, structure) = oracle.facts, toy(oracle)
    options = dhspg.DhspgOptions(
        steps=STEPS, sparsity=facts["target_group_sparsity"], strength=facts["lmbda"], amplify=facts["lmbda_amplify"],
        most=facts["hat_lmbda_coeff"], epsilon=facts["epsilon"], tolerance=facts["tolerance_group_sparsity"],
        partition=facts["partition_step"] / STEPS, warm=facts["warm_up_steps"] / STEPS,
        project=facts["half_space_project_steps"] / STEPS,
    )  # fmt: skip
    hook = dhspg.HalfSpaces(net, structure, options)
    hook.bound(torch.optim.SGD(net.parameters(), lr=facts["lr"]))
    for step in range(1, STEPS + 1):
        for name, parameter in net.named_parameters():
            parameter.grad = oracle[f"grad/{step}/{name}"].clone()
        hook.after_backward(step - 1)
        for parameter in net.parameters():
            parameter.data -= facts["lr"] * parameter.grad
        hook.after_step(step - 1)
        for name, parameter in net.named_parameters():
            wanted = oracle[f"param/{step}/{name}"]
            assert torch.allclose(parameter.detach(), wanted, rtol=0, atol=1e-12), (step, name)
        for key, wanted in oracle.tensors(f"penalised/{step}/").items():
            assert hook.penalised[key].nonzero().flatten().tolist() == wanted.tolist()
    assert any((net.get_parameter(f"{name}.weight") == 0).all(1).any() for name in ("fc1", "fc2"))
    again = dhspg.HalfSpaces(net, structure, options)
    again.restore(hook.state())
    assert all(torch.equal(again.penalised[name], flags) for name, flags in hook.penalised.items())


def test_a_run_meets_the_target(lab: Lab) -> None:
    told = lab.run("method=dhspg", "sparsity=0.5", "steps=8", "dhspg.batch_size=4", "amplify=40", "strength=10")
    assert told.code == 0, told.err
    folder = next(p.parent for p in lab.folder.rglob("result.json") if "dhspg" in str(p))
    parameters = json.loads((folder / "result.json").read_text())["parameters"]
    assert parameters["removed"] / parameters["prunable"] == pytest.approx(0.5, abs=0.05)
