"""Gradient accumulation: of every family whose loss is a mean, the gradient of the whole batch."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tests.training.families import FAMILIES, batch_of, capability, gradients, loss, open_model, set_dropout
from vlbench.capability import Batch
from vlbench.cell.resolve import resolve
from vlbench.errors import UserError
from vlbench.job import Job, Surroundings
from vlbench.training.batches import Batches
from vlbench.training.loop import Hook, Loop, Schedule

MEANS = [name for name in FAMILIES if "retrieval" not in name and "clip" not in name]


class Taken(Hook):
    """Takes the gradients off before the optimiser sees them."""

    def __init__(self, net: torch.nn.Module) -> None:
        self.net, self.found = net, [dict[str, Tensor]()]

    def after_backward(self, step: int) -> None:
        self.found.append(gradients(self.net))


class One:
    """The same batch at every step."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def at(self, step: int) -> Batch:
        return self.batch


def trained(model: Any, accumulate: int) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one step of the loop."""
    task: Any = type("Task", (), {"capability": capability(model)})()
    job = Job(model, task, cast(Any, None), Surroundings(0, cast(Any, None)))
    schedule = Schedule(steps=1, lr=1e-3, accumulate=accumulate)
    taken = Taken(model.net)
    stream = cast(Batches, One(batch_of(model)))
    loop = Loop(model.net, lambda b: loss(model, b), stream, schedule, seed=0, hooks=[taken], terms=job._terms)
    return loop.run()[0], taken.found[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MEANS)
def test_parts_add_up_to_the_whole_gradient(name: str, dtype: torch.dtype) -> None:
    """Samples have 2 to 12 tokens, and maps from none to all of their pixels told: parts do not weigh alike."""
    model = open_model(name)
    model.net.to(dtype)
    set_dropout(model.net, 0.0)
    value, whole = trained(model, 1)
    scale = max(float(g.abs().max()) for g in whole.values())
    for parts in (2, 4, 100):
        other, found = trained(model, parts)
        assert other == pytest.approx(value, rel=1e-5 if dtype == torch.float32 else 1e-10)
        assert found.keys() == whole.keys()
        worst = max(float((found[k] - whole[k]).abs().max()) for k in whole)
        assert worst <= scale * (1e-6 if dtype == torch.float32 else 1e-12)


def test_parts_without_a_label_are_left_out_and_a_batch_without_one_is_told() -> None:
    model = open_model("segmenter-mini")
    batch = batch_of(model)
    assert batch.maps is not None
    batch.maps[:] = 255
    model_loss = loss(model, batch)
    assert not torch.isfinite(model_loss)
    batch.maps[4, 0, 0] = 1
    task: Any = type("Task", (), {"capability": "segment"})()
    job = Job(model, task, cast(Any, None), Surroundings(0, cast(Any, None)))
    schedule = Schedule(steps=1, lr=1e-3, accumulate=6)
    loop = Loop(model.net, lambda b: loss(model, b), cast(Batches, One(batch)), schedule, seed=0, terms=job._terms)
    assert [share for _, share in loop._parts(batch)] == [1.0]


def test_a_loss_that_compares_the_batch_is_refused() -> None:
    words = {"task": "coco_retrieval", "method": "upop", "finetune.accumulate": "4"}
    with pytest.raises(UserError, match=r"finetune.accumulate=4: the loss of match compares the samples of a batch"):
        resolve(words)
    resolve({**words, "finetune.accumulate": "1", "finetune.checkpointing": "on"})
    resolve({**words, "task": "nlvr2"})
