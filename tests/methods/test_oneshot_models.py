"""Every one-shot pruner with every pattern on every mini model, on two samples: what it promises, by count."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from vlbench.images.pipeline import ImageStore
from vlbench.job import Job, Surroundings
from vlbench.mini.world import mini_root
from vlbench.model import Model
from vlbench.plugins.table import table
from vlbench.plugins.worlds import worlds
from vlbench.task import Task
from vlbench.tensors.locate import locate

METHODS = ("magnitude", "random", "wanda", "sparsegpt", "taylor", "obd")
TARGETS: dict[str, dict[str, Any]] = {
    "unstructured": {"sparsity": 0.5},
    "n:m": {"sparsity": "2:4"},
    "structured": {"sparsity": 0.5, "pattern": "structured"},
}
MODELS = [name for name, entry in table("models").entries.items() if entry.facts.get("suite") == "mini"]


def opened(name: str) -> tuple[Model, Task, ImageStore]:
    entry = table("models").get(name)
    card = next(c for c in entry.load().cards if c.name == name)
    model: Model = entry.load().open(card, locate(card.checkpoint, card.revision, {}))
    by_task = worlds()
    tasks = (table("tasks").get(name) for name in sorted(by_task))
    cls = next(e for e in tasks if e.facts["capability"] in card.capabilities).load()
    task = cls(mini_root(by_task[cls.name]), cls.Options.model_validate(dict(cls.mini)))
    return model, task, ImageStore(card.image, model.views)


def prune(job: Job, name: str, words: dict[str, Any]) -> None:
    """The job after the method, calibrated on two samples."""
    method = table("methods").get(name).load()
    few = {"calibration_samples": 2} if "calibration_samples" in method.Options.model_fields else {}
    torch.manual_seed(0)
    method(method.Options.model_validate({**words, **few})).apply(job)


def counted(job: Job, pattern: str, size: int) -> None:
    """Half of the prunable set is gone, the way the pattern says."""
    net, structure = job.model.net, job.changes.structure
    if pattern == "structured":
        assert not job.changes.state.masks
        assert structure.size == pytest.approx(size / 2, rel=0.05)  # whole units of narrow heads
        return
    assert set(job.changes.state.masks) == set(structure.matrices)
    for name, mask in job.changes.state.masks.items():
        assert torch.equal(net.get_parameter(name) == 0, ~mask)
        if pattern == "n:m":
            assert bool((mask.reshape(-1, 4).sum(1) == 2).all())
        else:
            assert float((~mask).float().mean()) == pytest.approx(0.5, abs=0.03)  # rows of few columns


@pytest.mark.parametrize("name", MODELS)
def test_every_method_and_pattern(tmp_path: Path, name: str) -> None:
    model, task, store = opened(name)
    size = model.structure().size
    train = task.samples(task.roles()["train"])[:40]
    for method in METHODS:
        for pattern in table("methods").get(method).facts["patterns"]:
            fresh = copy.copy(model)
            fresh.net = copy.deepcopy(model.net)
            job = Job(fresh, task, store, Surroundings(0, tmp_path / f"{method}-{pattern[0]}"))
            job.data._samples["train"] = train  # parsed once
            prune(job, method, TARGETS[pattern])
            counted(job, pattern, size)
            loss = job.loss(job.data.calibration(2, 2)[0])
            assert bool(torch.isfinite(loss)), (method, pattern)
