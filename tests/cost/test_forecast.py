"""Memory that is told before a run, of a model without weights, beside that of the model with them on this CPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.minis import opened
from vlbench.cost.forecast import Alive, Step, evaluated, fused_attention, macs, passing, trained, training
from vlbench.plugins.table import table

BATCH = 8
CELLS = {
    "deit-mini": "classify", "blip-vqa-mini": "answer", "clip-mini": "match", "blip-nlvr-mini": "judge",
    "segmenter-mini": "segment",
}  # fmt: skip


def test_bytes_are_counted_while_they_are_alive_and_once_a_memory() -> None:
    given = torch.zeros(1000)
    with Alive() as alive:
        a = torch.zeros(100)
        b = a[10:] + 1  # 90
        a.add_(1)
        given.mul_(2)
        assert (alive.now, alive.peak) == (4 * 190, 4 * 190)
        del b
        assert alive.now == 4 * 100
        torch.zeros(50)
    assert (alive.now, alive.peak) == (4 * 100, 4 * 190)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_takes_what_was_told_within_three_tenths(name: str, checkpointing: bool) -> None:
    entry, capability = table("models").get(name), CELLS[name]
    model = opened(name)
    told = trained(entry, capability, Step(1, BATCH, 1, "adamw", checkpointing))
    assert told.activations == pytest.approx(training(model, capability, BATCH, checkpointing=checkpointing), rel=0.3)
    parameters = sum(p.numel() for p in model.net.parameters()) * 4
    assert parameters <= told.weights <= 1.01 * parameters  # and buffers
    assert (told.gradients, told.optimiser) == (told.weights, 2 * told.weights)
    assert told.total == told.activations + 4 * told.weights


@pytest.mark.parametrize("name", CELLS)
def test_a_forward_pass_takes_what_was_told_within_three_tenths(name: str) -> None:
    told = evaluated(table("models").get(name), CELLS[name], BATCH)
    assert told.activations == pytest.approx(passing(opened(name), CELLS[name], BATCH), rel=0.3)


def test_blocks_that_are_computed_again_take_less() -> None:
    entry = table("models").get("deit-small")
    plain, again = (trained(entry, "classify", Step(1, BATCH, 1, "adamw", word)) for word in (False, True))
    assert again.activations < plain.activations / 4
    assert again.weights == plain.weights


def test_a_model_of_7_billion_parameters_is_counted_and_not_built() -> None:
    entry = table("models").get("llava-1.5-7b")
    assert evaluated(entry, "answer", 1).weights > 28e9
    assert macs(entry, "answer") > 10**12


def test_attention_is_as_it_was_afterwards() -> None:
    before = F.scaled_dot_product_attention
    with fused_attention():
        assert F.scaled_dot_product_attention is not before
    assert F.scaled_dot_product_attention is before
