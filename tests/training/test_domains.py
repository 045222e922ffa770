"""Oracle: the shares of Sheared LLaMA's published callback (recorded), and counting for what is drawn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.lab import Lab
from tests.oracles import Oracle
from vlbench.capability import Batch
from vlbench.errors import UserError
from vlbench.restoring.distill import TeacherOptions
from vlbench.task import Sample
from vlbench.tensors.checkpoint import CheckpointStore
from vlbench.training.domains import DomainBatches, DynamicStream, domains_of, moved, parse_numbers, refuse_domains
from vlbench.training.loop import Loop, Schedule

STEPS = 7
SCHEDULE = Schedule(steps=STEPS, lr=0.1, batch_size=8)


@pytest.mark.parametrize("rule", ["doremi", "bandit", "constant"])
def test_shares(shared: Path, rule: Any) -> None:
    oracle = Oracle(shared / "oracles" / "neighbours" / "sheared_dynamic_loading_a.npz")
    share = oracle["proportion"]
    for losses, wanted in zip(oracle["losses"], oracle[rule], strict=True):
        share = moved(share, losses - oracle["target_loss"], rule)
        assert torch.allclose(share, wanted, rtol=0, atol=1e-6)


class Drawn(DomainBatches):
    """Batches of numbers: the rows of the samples."""

    def at(self, step: int) -> Batch:
        rows = torch.tensor([[float(s.id)] for s in self.chosen(step)])
        return Batch(self.chosen(step), rows, torch.arange(len(rows))[:, None])


def batches() -> Drawn:
    samples = [Sample(str(i), (Path(f"{i % 5}.png"),)) for i in range(30)]
    nothing: Any = None
    return Drawn(samples, {"few": range(10), "many": range(10, 30)}, nothing, size=8, seed=3)


def test_a_domain_repeats_no_sample_before_all_have_come() -> None:
    stream = batches()
    assert stream.share_of.tolist() == pytest.approx([1 / 3, 2 / 3])
    seen: Counter[str] = Counter()
    for step in range(40):
        stream.plan(step)
        chosen = stream.chosen(step)
        assert len(chosen) == 8
        assert [s.images[0].name for s in chosen] == sorted(s.images[0].name for s in chosen)
        seen.update(s.id for s in chosen)
        for number, rows in enumerate(stream.domains.values()):
            counts = [seen[str(row)] for row in rows]
            assert max(counts) - min(counts) <= 1
            assert sum(counts) == stream.taken[number]
    assert sum(stream.taken) == 320
    assert stream.taken[0] == pytest.approx(320 / 3, abs=25)
    with pytest.raises(RuntimeError, match="not planned"):
        stream.chosen(3)


class Run:
    """One life of a training whose domains' losses follow from the model."""

    def __init__(self, folder: Path | None, kill: int = 0) -> None:
        self.net, self.kill, self.drawn = nn.Linear(1, 1, bias=False), kill, batches()
        nn.init.constant_(self.net.weight, 0.5)
        self.hook = DynamicStream(self.drawn, self.losses, {"few": 0.1, "many": 0.2}, every=2, rule="doremi")
        self.loop = Loop(
            self.net, lambda batch: (self.net(batch.images) / 30).square().mean(), self.drawn, SCHEDULE, seed=3,
            hooks=[self.hook], store=CheckpointStore(folder, {}, 0) if folder else None, progress=self.progress,
        )  # fmt: skip

    def losses(self) -> dict[str, float]:
        weight = float(self.net.weight.detach())
        return {"few": 2 * weight, "many": weight}

    def progress(self, done: int, total: int, text: str) -> None:
        if done == self.kill:
            raise InterruptedError


def test_shares_move_at_known_steps_and_a_killed_run_ends_the_same(tmp_path: Path) -> None:
    calm = Run(None)
    calm.loop.run()
    told = calm.hook.recorded()
    assert told["domains"] == ["few", "many"]
    assert len(told["shares"]) == 1 + (STEPS - 1) // 2
    assert told["shares"][-1][0] > told["shares"][0][0]  # its loss lies further above its reference
    for kill in range(2, STEPS + 1):
        with pytest.raises(InterruptedError):
            Run(tmp_path / str(kill), kill).loop.run()
        again = Run(tmp_path / str(kill))
        assert again.loop.run() == calm.loop.losses
        assert torch.equal(again.net.weight, calm.net.weight)
        assert again.hook.recorded() == told
        assert again.drawn.taken == calm.drawn.taken


def test_domains_are_the_groups_that_a_task_reports_by() -> None:
    samples = [Sample(name, ()) for name in "abcd"]
    task: Any = SimpleNamespace(name="t", groups=lambda samples: {"a": "y", "c": "x", "d": "y"})
    assert domains_of(task, samples) == {"x": [2], "y": [0, 3]}
    task.groups = lambda samples: dict.fromkeys("abcd", "x")
    with pytest.raises(UserError, match="the samples of t are of no domains"):
        domains_of(task, samples)
    with pytest.raises(UserError, match="each of x, y a number, and z is none of them"):
        refuse_domains("stream_start", {"x": 1.0, "y": 1.0, "z": 1.0}, ["x", "y"])
    assert parse_numbers("yes_no:0.5+other:2") == {"yes_no": 0.5, "other": 2.0}


@pytest.mark.parametrize("text", ["x", "x:", "x:-1", "x:nan", ":1", "x:1+x:2"])
def test_numbers_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="should be a domain and a number"):
        parse_numbers(text)


def test_options_without_a_meaning_are_refused_and_defaults_enter_no_identity(lab: Lab) -> None:
    with pytest.raises(ValueError, match="stream_every= has a meaning with stream=dynamic only"):
        Schedule(steps=1, lr=1, stream_every=3)
    assert not any(name.startswith("stream") for name in TeacherOptions(steps=1, lr=1).recorded())
    sentence = lab.refused_run("method=magnitude+finetune", "sparsity=0.5", "stream=dynamic")
    assert sentence.startswith("stream=dynamic: the samples of imagenet are of no domains")


def test_another_tasks_training_data_have_no_domains_of_this_one(lab: Lab) -> None:
    words = (
        "task=vqav2",
        "model=blip-vqa-mini",
        "train=mme",
        "method=magnitude+finetune",
        "sparsity=0.5",
        "stream=dynamic",
    )
    assert lab.refused_run(*words).startswith("stream=dynamic draws from the task's own train split: leave train=")
    assert not list(lab.folder.rglob("runs"))
