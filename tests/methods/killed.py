"""A link of a chain that is killed after some training steps, every one of which was saved, and then run again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from vlbench.checks.tiny import Outcome, Workshop
from vlbench.compression.state import Compression
from vlbench.job import Job, Surroundings
from vlbench.training.loop import Loop


def killed_and_resumed(
    workshop: Workshop, words: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, *, after: int
) -> Outcome:
    """What two processes leave: the first dies before training step `after`, the second finds its folder."""
    plain, done = Loop._step, [0]

    def step(this: Any, number: int) -> None:
        if done[0] == after:
            done[0] += 1
            raise KeyboardInterrupt
        done[0] += 1
        plain(this, number)

    monkeypatch.setattr(Loop, "_step", step)
    number = workshop.runs
    with pytest.raises(KeyboardInterrupt):
        _apply(workshop, words, number)
    return _apply(workshop, words, number)


def _apply(workshop: Workshop, words: Mapping[str, str], number: int) -> Outcome:
    model = workshop.model()
    outcome = Outcome(model, Compression(), model.structure().size)
    for link in workshop.links(words):
        here = Surroundings(
            0, workshop.folder / f"killed-{number}", identity={"killed": number}, checkpoint_seconds=0.0
        )
        job = Job(model, workshop.task, workshop.store, here, state=outcome.state, dense=workshop.model)
        torch.manual_seed(0)
        link.method(link.options).apply(job)
    return outcome


def same_weights(a: Outcome, b: Outcome) -> bool:
    ours, theirs = a.model.net.state_dict(), b.model.net.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
