"""ShortGPT's block influence and SLEB's greedy order against the original code's arrays."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.lab import Lab
from tests.oracles import Oracle
from vlbench.compression.saved import load_model
from vlbench.structure import Block, Structure, Tower

shortgpt = importlib.import_module("vlbench.methods.shortgpt")
sleb = importlib.import_module("vlbench.methods.sleb")


class Table(nn.Module):
    """A block that gives out what was recorded."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        return self.output


def test_influence_is_the_originals(shared: Path) -> None:
    oracle = Oracle(shared / "oracles" / "neighbours" / "shortgpt_bi_a.npz")
    hidden = [oracle[f"hidden/{i}"] for i in range(7)]
    net = nn.Sequential(*map(Table, hidden[1:]))
    structure = Structure((Tower("tower", tuple(Block(str(i), ()) for i in range(6))),))
    tokens = hidden[0][..., 0].numel()
    for measure, key in (("cosine", "bi_sum"), ("angular", "angular_sum")):
        found = shortgpt.measured(net, structure, [lambda: net(hidden[0])], measure)["tower"]
        assert torch.allclose(found * tokens, oracle[key], rtol=0, atol=1e-9)
    cosine = shortgpt.measured(net, structure, [lambda: net(hidden[0])], "cosine")["tower"]
    assert cosine.argsort().tolist() == oracle["order"].tolist()


def test_a_token_without_a_direction_counts_half() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert shortgpt.influence(x, torch.ones(2, 2)).tolist() == pytest.approx([0.5, 1 - 0.5**0.5])


def test_greedy_order_is_the_originals(shared: Path) -> None:
    facts = json.loads((shared / "oracles" / "neighbours" / "sleb_a.json").read_text())

    def loss(removed: Sequence[int]) -> float:
        pairs = sum(abs(facts["pair"][i][j]) for i, j in combinations(sorted(removed), 2))
        return float(5 + sum(facts["base"][i] for i in removed) + pairs)

    count = len(facts["base"])
    inner = sleb._inner(count, facts["early_barrier"])
    order = sleb.greedy(
        count, loss, lambda removed: removed[-1] in inner, lambda removed, _: len(removed) == facts["num_remove"]
    )
    assert order == facts["order"]


@pytest.mark.parametrize("words", [("method=sleb", "barriers=0"), ("method=shortgpt",)])
def test_a_run_leaves_half_of_the_blocks(lab: Lab, words: tuple[str, ...]) -> None:
    """The record of a whole run: half of the prunable set is gone, and the saved model lacks one of two blocks."""
    told = lab.run(*words, "sparsity=0.5", "calibration_samples=8")
    assert told.code == 0, told.err
    folder = next(p.parent for p in lab.folder.rglob("result.json") if words[0].removeprefix("method=") in str(p))
    record = json.loads((folder / "result.json").read_text())
    assert record["parameters"]["removed"] * 2 == record["parameters"]["prunable"]
    model, state = load_model(folder / "model")
    assert len(model.structure().towers[0].blocks) == 1
    assert len(state.cuts[0].sites["vision.blocks"][1]) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("method=sleb", "sparsity=0.5"), "barriers=1"),
        (("method=shortgpt", "sparsity=0.9"), "whole blocks"),
        (("method=shortgpt", "sparsity=2:4"), "pattern of single weights"),
    ],
)
def test_what_cannot_be_removed_is_told(lab: Lab, words: tuple[str, ...], sentence: str) -> None:
    told = lab.run(*words)
    assert told.code == 2
    assert sentence in told.err
    assert not list(lab.folder.rglob("result.json"))
