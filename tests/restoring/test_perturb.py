"""Oracle: LoRA-MGPO's trainer and kohya's reading of GGPO, recorded: weights, losses and adapters after every step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.lab import Lab
from tests.oracles import Oracle
from vlbench.nn.adapted import attach
from vlbench.restoring.perturb import Perturbed, adapted_layers


class Net(nn.Module):
    def __init__(self, oracle: Oracle) -> None:
        super().__init__()
        for name in ("l1", "l2"):
            weight = oracle[f"init/{name}/weight"]
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False).double()
            layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
            scaling = oracle.facts["alpha"] / oracle.facts["rank"]
            attach(layer, oracle[f"init/{name}/a"].clone(), oracle[f"init/{name}/b"].clone(), scaling)
            setattr(self, name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.l2(torch.tanh(self.l1(x)))


def test_mgpo(shared: Path) -> None:
    oracle = Oracle(shared / "oracles" / "neighbours" / "lora_mgpo_a.npz")
    net, facts = Net(oracle), oracle.facts
    hook = Perturbed(adapted_layers(net), "mgpo", rho=facts["rho"], beta=facts["beta"])
    trained = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        trained, lr=facts["lr"], betas=(facts["mu"], facts["adam_beta2"]), weight_decay=0
    )  # fmt: skip
    hook.bound(optimiser)
    for step in range(1, facts["steps"] + 1):
        before = {name: getattr(net, name).weight.clone() for name in ("l1", "l2")}
        hook.before_step(step)
        for name, weight in before.items():
            wanted = oracle[f"perturbation/{step}/{name}"]
            assert torch.allclose(getattr(net, name).weight - weight, wanted, atol=1e-10, rtol=0)
        loss = F.mse_loss(net(oracle[f"x/{step}"]), oracle[f"y/{step}"])
        assert float(loss) == pytest.approx(float(oracle[f"loss/{step}"]), abs=1e-10)
        loss.backward()
        hook.after_backward(step)
        optimiser.step()
        optimiser.zero_grad()
        for name, weight in before.items():
            layer = getattr(net, name)
            assert torch.equal(layer.weight, weight)
            assert float(hook.size[name]) == pytest.approx(float(oracle[f"gbar/{step}/{name}"]), abs=1e-10)
            assert torch.allclose(layer.lora_a, oracle[f"a/{step}/{name}"], atol=1e-10, rtol=0)
            assert torch.allclose(layer.lora_b, oracle[f"b/{step}/{name}"], atol=1e-10, rtol=0)


def test_ggpo(shared: Path) -> None:
    oracle = Oracle(shared / "oracles" / "neighbours" / "lora_ggpo_kohya_a.npz")
    facts = oracle.facts
    layer = nn.Linear(5, 6, bias=False).double()
    layer.weight = nn.Parameter(oracle["W"].clone(), requires_grad=False)
    attach(layer, oracle["down"].clone(), oracle["up"].clone(), facts["alpha"] / facts["rank"])
    (described,) = adapted_layers(nn.ModuleDict({"one": layer}))
    hook = Perturbed([described], "ggpo", beta=facts["beta"], sigma=facts["sigma"])
    described.a.grad, described.b.grad = oracle["grad_down"], oracle["grad_up"]
    hook.after_backward(0)
    assert torch.allclose(hook.size["one"], oracle["grad_norm"][:, 0], atol=1e-10, rtol=0)
    with torch.no_grad():
        layer.weight += hook.noise(described, oracle["noise"])
        assert torch.allclose(layer(oracle["x"]), oracle["y"], atol=1e-10, rtol=0)


@pytest.mark.parametrize(("method", "perturb"), [("sparselora", "mgpo"), ("lora", "ggpo")])
def test_a_run_ends_with_the_weights_it_began_with(lab: Lab, method: str, perturb: str) -> None:
    """The record of a whole run; zeros of the mask stay under the perturbation."""
    told = lab.run(
        f"method=magnitude+{method}",
        "sparsity=0.5",
        f"perturb={perturb}",
        "steps=4",
        f"{method}.batch_size=4",
        "warmup=0",
    )
    assert told.code == 0, told.err
    folder = next(p.parent for p in lab.folder.rglob("result.json") if method in str(p))
    parameters = json.loads((folder / "result.json").read_text())["parameters"]
    removed = parameters["removed"] / parameters["prunable"]
    assert removed == pytest.approx(0.5, abs=0.01) if method == "sparselora" else removed < 0.1


def test_options_that_belong_to_it_are_refused_without_it(lab: Lab) -> None:
    assert "belongs to perturb=mgpo or ggpo" in lab.refused_run("method=magnitude+lora", "rho=0.1")
