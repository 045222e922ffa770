"""Wanda, SparseGPT, UPop and SparseLoRA on the tiny form of every family, in all of its towers: what they promise, by
count, and finite losses. Oracle of the statistics: plain hooks in whole runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import copy, deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.registry import test_encoders, test_llave, test_prismatic, test_vila
from tests.registry.folders import FOLDERS
from tests.registry.test_families import picture, statistics_equal_hooked_runs
from vlbench.compression.saved import open_checkpoint
from vlbench.compression.state import Compression
from vlbench.images.pipeline import ImageStore
from vlbench.job import Job, Surroundings
from vlbench.plugins.table import table
from vlbench.task import Sample, Task

FEW: dict[str, dict[str, Any]] = {
    "wanda": {"sparsity": 0.5, "calibration_samples": 2},
    "sparsegpt": {"sparsity": 0.5, "calibration_samples": 2},
    "upop_search": {"sparsity": 0.5, "steps": 2, "batch_size": 2},
    "sparselora": {"steps": 2, "batch_size": 2, "rank": 2},
    "finetune": {"steps": 1, "batch_size": 2},
}


class Few(Task):
    """Four samples of two images."""

    name, metric, version = "few", "accuracy", 1

    @classmethod
    def roles(cls) -> dict[Any, str]:
        return {"train": "train", "select": "select", "report": "val"}

    def missing(self, split: str) -> list[str]:
        return []

    def samples(self, split: str) -> list[Sample]:
        images = [self.root / f"{i}.png" for i in (0, 1, 0, 1)] if split == "train" else []
        return [
            Sample(f"{split}{i}", (image,), f"w{i + 5}", texts=(f"w{i + 5}",), target=self.target)
            for i, image in enumerate(images)
        ]

    def aggregate(self, samples: Any, scores: Any) -> dict[str, float]:
        return {}


def made(name: str, folder: Path) -> Any:
    """The opened model of a folder in the published layout."""
    torch.manual_seed(0)
    other: dict[str, Callable[[], Any]] = {
        "llave-0.5b": lambda: test_llave.opened(test_llave.folder_of(folder)),
        "vila1.5-3b": lambda: test_vila.opened(test_vila.folder_of(folder)),
        "prism-dinosiglip-224px-7b": lambda: test_prismatic.opened(
            "dinosiglip", test_prismatic.folder_of("dinosiglip", folder)
        ),
    }
    if name in other:
        return other[name]()
    chat = {one.name: one.write for one in FOLDERS}
    {**test_encoders.KINDS, **chat}[name](folder)
    cls = table("models").get(name).load()
    return open_checkpoint(cls, next(c for c in cls.cards if c.name == name), folder)[0]


RECORDED = {
    "llave-0.5b": test_llave.TINY,
    "vila1.5-3b": test_vila.TINY,
    "prism-dinosiglip-224px-7b": test_prismatic.TINY,
}
NAMES = [*(f.name for f in FOLDERS), *test_encoders.KINDS, *RECORDED]


@pytest.fixture(scope="module", params=NAMES)
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param in RECORDED and not RECORDED[request.param].is_dir():
        pytest.skip(f"the recorded tiny folder of {request.param} is not beside this checkout")
    return made(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def job_of(model: Any, folder: Path) -> Job:
    task = Few(folder, None)  # type: ignore[arg-type]
    task.capability = model.card.capabilities[0]
    task.target = {"answer": {"w5": 1.0}, "classify": "class 1"}.get(task.capability)
    other = copy(model)
    other.net = deepcopy(model.net)
    store = ImageStore(replace(model.card.image, size=28), model.views)  # the size counts where a family has no views
    for i, size in enumerate(((60, 40), (28, 28))):
        picture(*size).save(folder / f"{i}.png")
    return Job(other, task, store, Surroundings(0, folder), state=Compression())


def applied(job: Job, name: str, words: Mapping[str, Any]) -> None:
    method = table("methods").get(name).load()
    torch.manual_seed(0)
    method(method.Options.model_validate(words)).apply(job)
    batch = job.data.calibration(2, 2)[0]
    assert bool(torch.isfinite(job.loss(batch))), name


def test_every_method_prunes_every_tower(model: Any, tmp_path: Path) -> None:
    for name in ("wanda", "sparsegpt"):
        job = job_of(model, tmp_path)
        applied(job, name, FEW[name])
        masks = job.changes.state.masks
        assert set(masks) == set(model.structure().matrices)
        assert all(0.3 <= float((~mask).float().mean()) <= 0.6 for mask in masks.values()), name
    before = {name: job.model.net.get_parameter(name).clone() for name in masks}
    applied(job, "sparselora", FEW["sparselora"])
    for tower in model.structure().towers:
        names = {name for site in tower.sites for name in site.matrices}
        changed = [n for n in names if not torch.equal(before[n], job.model.net.get_parameter(n))]
        assert changed, tower.name
        assert all(bool((job.model.net.get_parameter(n)[~masks[n]] == 0).all()) for n in names)
    job = job_of(model, tmp_path)
    for link in table("methods").get("upop").facts["links"]:
        applied(job, link, FEW[link])
    size, left = model.structure().tower_sizes(), job.model.structure().tower_sizes()
    assert 0.35 <= 1 - sum(left.values()) / sum(size.values()) <= 0.6
    assert all(left[tower] < size[tower] for tower in size)


def test_statistics_are_those_of_whole_runs(model: Any, tmp_path: Path) -> None:
    job = job_of(model, tmp_path)
    batch = job.data.calibration(2, 2)[0]
    statistics_equal_hooked_runs(job.model, lambda: job.loss(batch))
