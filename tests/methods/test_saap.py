"""Oracle: the formulas by hand (no code of the paper exists), and the record of a run."""

from __future__ import annotations

import importlib
import json

import pytest
import torch
from torch import nn

from tests.lab import Lab
from vlbench.calibration.statistics import Statistics
from vlbench.compression.saved import load_model
from vlbench.nn.adapted import attach
from vlbench.structure import Site, Slice

saap = importlib.import_module("vlbench.methods.saap")


def learnt(gradient: torch.Tensor, samples: int) -> Statistics:
    return Statistics(torch.zeros(1), samples, None, gradient, gradient.square())


def test_importances_by_hand() -> None:
    """Two units: rows of one matrix and columns of the next."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    net[0].weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    net[1].weight.data = torch.tensor([[5.0, 6.0]])
    units = torch.tensor([[0], [1]])
    slices = (Slice("0.weight", (2, 2), 0, units, True), Slice("1.weight", (1, 2), 1, units))
    site = Site("s", "ffn", "language", "neuron", slices)
    first, second = torch.tensor([[0.5, -0.5], [0.1, 0.2]]), torch.tensor([[1.0, -2.0]])
    seen = {"0.weight": learnt(first, 1), "1.weight": learnt(second, 1)}
    coarse, fine = saap.importances(net, site, seen)
    assert coarse.tolist() == pytest.approx([abs(0.5 - 1.0) + 5, abs(0.3 + 0.8) + 12])

    def one(w: float, g: float) -> float:
        return abs(w * g - w * g * g * w / 2)

    assert fine.tolist() == pytest.approx(
        [one(1, 0.5) + one(2, -0.5) + one(5, 1), one(3, 0.1) + one(4, 0.2) + one(6, -2)], rel=1e-6
    )


def test_the_noise_is_where_the_fused_sum_is_least() -> None:
    torch.manual_seed(0)
    coarse, fine = torch.rand(6).double() * 3, torch.rand(6).double()
    found = saap.fused(coarse, fine).mean()

    def at(s: float, t: float) -> float:
        return float((coarse / (2 * s**2) + fine / (2 * t**2)).mean() + torch.log(torch.tensor(s * t)))

    best = [float(one.mean()) ** 0.5 for one in (coarse, fine)]
    assert float(found) == pytest.approx(at(*best))
    assert all(at(best[0] * a, best[1] * b) > at(*best) for a, b in ((1.1, 1), (0.9, 1), (1, 1.1), (1, 0.9)))


def test_parts_together_are_the_whole() -> None:
    first, second = torch.randn(3, 2), torch.randn(3, 2)
    whole = saap.joined([{"w": learnt(first, 3)}, {"w": learnt(second, 1)}])["w"]
    assert whole.samples == 4
    assert torch.allclose(whole.gradient, (3 * first + second) / 4)
    assert [len(part) for part in saap.parted(range(10), 4)] == [2, 3, 2, 3]


def test_what_fluctuates_more_is_pruned_more_and_the_target_is_met() -> None:
    calm = saap.fluctuation([torch.tensor([1.0, 2.0]), torch.tensor([1.1, 2.1])])
    wild = saap.fluctuation([torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])])
    assert calm == pytest.approx(0.0, abs=1e-6)  # all units alike
    assert wild > 0.5
    sizes = {"calm": 100, "wild": 300}
    ratios = saap.adaptive({"calm": calm, "wild": wild}, sizes, saap.SaapOptions(sparsity=0.4))
    assert ratios["wild"] > ratios["calm"]
    assert sum(ratios[n] * sizes[n] for n in sizes) == pytest.approx(0.4 * 400)
    same = saap.adaptive({"calm": 0.5, "wild": 0.5}, sizes, saap.SaapOptions(sparsity=0.4))
    assert same == pytest.approx({"calm": 0.4, "wild": 0.4})


def test_columns_of_a_group_stay_one() -> None:
    net = nn.Sequential(nn.Linear(7, 3))
    attach(net[0], torch.randn(2, 7), torch.randn(3, 2), 1.0)
    hook = saap.Grouped(net, 3)
    a = net[0].lora_a
    optimiser = torch.optim.AdamW([a, net[0].lora_b], lr=0.1)
    for step in range(3):
        net(torch.randn(4, 7)).square().mean().backward()
        plain = a.grad.clone()
        hook.after_backward(step)
        assert torch.allclose(a.grad[:, 0], plain[:, :3].sum(1))
        optimiser.step()
        optimiser.zero_grad()
        assert all(torch.equal(part, part[:, :1].expand_as(part)) for part in a.detach().split(3, 1))
        assert not torch.equal(a[:, 0], a[:, 3])


def test_a_run_meets_the_target(lab: Lab) -> None:
    words = ("calibration_samples=4", "parts=2", "groupwise.steps=2", "groupwise.batch_size=4", "groupwise.rank=1")
    told = lab.run("method=saap", "sparsity=0.5", "groupwise.ranks=vision:1", "groupwise.warmup=0", *words[:4])
    assert told.code == 0, told.err
    folder = next(p.parent for p in lab.folder.rglob("result.json") if "saap" in str(p))
    parameters = json.loads((folder / "result.json").read_text())["parameters"]
    assert parameters["removed"] / parameters["prunable"] == pytest.approx(0.5, abs=0.05)
    assert len(set(load_model(folder / "model")[1].log["saap_search"]["ratios"].values())) > 1
