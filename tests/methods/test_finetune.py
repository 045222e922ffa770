"""Finetuning with every option of the loop at once: killed anywhere it ends the same, bit for bit."""

from __future__ import annotations

import pytest
from torch import nn

from tests.methods.killed import killed_and_resumed, same_weights
from vlbench.checks.tiny import Outcome, Workshop
from vlbench.compression.state import Compression
from vlbench.machine.ui import Screen
from vlbench.model import Model
from vlbench.plugins.table import table

ALL = {
    "steps": "3", "lr": "3e-3", "warmup": "1", "batch_size": "8", "clip": "1", "optimiser": "sgd", "decay": "poly",
    "accumulate": "3", "checkpointing": "on", "loss": "both", "temperature": "3",
}  # fmt: skip


class Dropped(Workshop):
    """Its model has dropout."""

    def model(self) -> Model:
        model = super().model()
        for layer in model.net.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.2
        return model


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Dropped(table("methods").get("finetune"), tmp_path_factory.mktemp("finetune"), Screen(quiet=True))


def own(words: dict[str, str]) -> dict[str, str]:
    return {f"finetune.{key}": value for key, value in words.items()}


def run(workshop: Workshop, words: dict[str, str]) -> Outcome:
    """The dense model trained; zeros of a mask are left to the contract test."""
    outcome = Outcome(workshop.model(), Compression(), 0)
    for link in workshop.links(own(words)):
        link.method(link.options).apply(workshop.job(outcome, 0))
    return outcome


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_killed_finetuning_ends_the_same(workshop: Workshop, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calm = run(workshop, ALL)
    resumed = killed_and_resumed(workshop, own(ALL), monkeypatch, after=after)
    assert same_weights(calm, resumed)
    assert resumed.state.log == calm.state.log
    assert (resumed.state.steps, resumed.state.samples_seen) == (3, 24)


@pytest.mark.parametrize("option", ["optimiser", "loss", "temperature", "decay"])
def test_every_option_counts(workshop: Workshop, option: str) -> None:
    """But those that only save memory: without dropout they change nothing but rounding (tests/training)."""
    words = {k: v for k, v in ALL.items() if k != option and not (option == "loss" and k == "temperature")}
    assert not same_weights(run(workshop, ALL), run(workshop, words))


def test_checkpointing_changes_not_a_bit(workshop: Workshop) -> None:
    assert same_weights(run(workshop, ALL), run(workshop, {**ALL, "checkpointing": "off"}))


@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_killed_tuning_ends_the_same(workshop: Workshop, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first rate, between two and in the last."""
    words = {**ALL, "steps": "2", "tune": "1e-3,3e-2,1e-4"}
    calm = run(workshop, words)
    resumed = killed_and_resumed(workshop, own(words), monkeypatch, after=after)
    assert same_weights(calm, resumed)
    assert resumed.state.log == calm.state.log
    assert resumed.state.steps == calm.state.steps == 2
