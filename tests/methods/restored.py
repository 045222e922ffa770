"""Restorers after every kind of pruner, on the workshop's tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.methods.killed import killed_and_resumed, same_weights
from vlbench.checks.tiny import Outcome, Workshop
from vlbench.compression.saved import load_model, save_model
from vlbench.compression.state import Compression
from vlbench.machine.ui import Screen
from vlbench.plugins.table import table

PRUNERS = {
    "unstructured": {"method": "magnitude", "magnitude.sparsity": "0.6"},
    "n:m": {"method": "magnitude", "magnitude.sparsity": "2:4"},
    "structured": {"method": "uniform", "uniform.sparsity": "0.5"},
}


def made(name: str, folder: Path) -> Workshop:
    return Workshop(table("methods").get(name), folder, Screen(quiet=True))


def chain(restorer: str, pattern: str, **options: str) -> dict[str, str]:
    """Words of a pruner of the pattern and of the restorer, three steps."""
    pruner = PRUNERS[pattern]
    short = {"steps": "3", "lr": "1e-2", "warmup": "0", "batch_size": "8", **options}
    told = {f"{restorer}.{key}": value for key, value in short.items()}
    return {**pruner, "method": f"{pruner['method']}+{restorer}", **told}


def run(workshop: Workshop, words: dict[str, str], links: int = 2) -> Outcome:
    """The model after the first links of a chain."""
    outcome = Outcome(workshop.model(), Compression(), workshop.model().structure().size)
    for link in workshop.links(words)[:links]:
        torch.manual_seed(0)
        link.method(link.options).apply(workshop.job(outcome, 0))
    return outcome


def pruned(workshop: Workshop, pattern: str) -> Outcome:
    """Before the restorer."""
    return run(workshop, chain(workshop.entry.name, pattern), links=1)


def resumes(workshop: Workshop, words: dict[str, str], monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """Killed and run again it ends as the undisturbed run, bit for bit."""
    calm, resumed = run(workshop, words), killed_and_resumed(workshop, words, monkeypatch, after=after)
    assert same_weights(calm, resumed)
    assert calm.state.log == resumed.state.log
    assert calm.state.adapters == resumed.state.adapters
    assert calm.state.budget == resumed.state.budget


def reloads(workshop: Workshop, outcome: Outcome, folder: Path) -> Outcome:
    """Saved and loaded the outputs are the same, bit for bit; what was done to it is known."""
    before = workshop.outputs(outcome.model)
    save_model(folder, outcome.model, outcome.state)
    model, state = load_model(folder)
    assert torch.equal(workshop.outputs(model), before)
    assert state.masks.keys() == outcome.state.masks.keys()
    assert (state.pattern, state.adapters) == (outcome.state.pattern, outcome.state.adapters)
    return Outcome(model, state, outcome.size)


def zeros(outcome: Outcome) -> int:
    """Of the prunable set."""
    net = outcome.model.net
    return sum(int((net.get_parameter(name) == 0).sum()) for name in outcome.model.structure().matrices)


def is_plain(outcome: Outcome, workshop: Workshop) -> bool:
    """Whether the names and classes are the library's, and everything can be trained on."""
    ours, theirs = outcome.model.net, workshop.model().net
    kinds = [(n, type(m)) for n, m in ours.named_modules()] == [(n, type(m)) for n, m in theirs.named_modules()]
    names = ours.state_dict().keys() == theirs.state_dict().keys()
    return kinds and names and all(p.requires_grad for p in ours.parameters())
