"""Where a method is tried out: a tiny model with random weights, on a data set of noise that is made here or on the
mini world of a task that is named."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..capability import Capability, capability_of
from ..cell.resolve import resolve
from ..cell.spec import LinkSpec
from ..compression.masks import keep_fraction
from ..compression.state import Compression
from ..errors import UserError
from ..images.pipeline import ImageStore
from ..job import Job, Surroundings
from ..machine.ui import Screen
from ..mini.world import mini_root
from ..model import Card, Model
from ..plugins.entry import Entry
from ..plugins.table import table
from ..plugins.worlds import world_of
from ..task import Task, held_out
from ..tensors.locate import locate

CLASSES = 4  # of the data made here
IMAGES = 12  # a class, in train and select
# Options that say how long a method works, and values that keep it short; others keep their defaults. barriers: the
# model has four blocks, and at 0.75 only one of them stays.
SHORT = {"barriers": "0", "steps": "2", "warmup": "0", "batch_size": "8", "samples": "8", "calibration_samples": "8"}


@dataclass
class Outcome:
    """A model after a chain, and what was done to it. size: entries of the prunable set before."""

    model: Model
    state: Compression
    size: int


class Workshop:
    """Makes the tiny model and its data, and runs chains on it."""

    def __init__(self, entry: Entry, folder: Path, screen: Screen, task: str = "") -> None:
        """task: whose mini model and mini world are taken; empty: noise for a classifier, which needs no world. Raises
        UserError where there is no such task, no mini model for it, or no mini world."""
        self.entry, self.folder, self.screen = entry, folder, screen
        self.card, self.family = _tiny_model(task)
        self.home = locate(self.card.checkpoint, self.card.revision, {})
        self.config = json.loads((self.home / "config.json").read_text(encoding="utf-8"))
        chosen = table("tasks").get(task or self.card.default_for[0])
        self.task_name = chosen.name
        cls = chosen.load()
        options = cls.Options.model_validate(dict(cls.mini) if task else {})
        self.task: Task = cls(self._root(chosen, named=bool(task)), options)
        self.capability: Capability[Any] = capability_of(self.task.capability)
        self.store = ImageStore(self.card.image)
        self.runs = 0

    def _root(self, task: Entry, *, named: bool) -> Path:
        """The folder of the task's data."""
        if not named:
            return _noise(self.folder / "data", self.config["label_names"][:CLASSES], self.card.image.size)
        world = world_of(task)
        if world is None:
            raise UserError(f"task={task.name} has no mini world to try a method in: name another task, or none.")
        return mini_root(world, self.screen.building)

    def model(self) -> Model:
        """The same random weights every time, none of them zero, on the device of this process."""
        torch.manual_seed(0)
        model: Model = self.family.build(self.card, self.config, self.home)
        with torch.no_grad():
            for parameter in model.net.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        model.place("fp32")
        return model

    def links(self, words: Mapping[str, str]) -> tuple[LinkSpec, ...]:
        """The method's links with short options, as `vlbench run` would resolve them."""
        name = self.entry.name
        restores = self.entry.facts.get("role") == "restorer"
        parts = [table("methods").get(link) for link in self.entry.facts.get("links", (name,))]
        short = {
            f"{part.name}.{option}": value
            for part in parts
            for option, value in SHORT.items()
            if option in part.load().Options.model_fields
        }
        chain = f"{_baseline()}+{name}" if restores else name
        spec = resolve({"task": self.task_name, "model": self.card.name, "method": chain, **short, **words})
        return spec.links

    def run(self, words: Mapping[str, str], *, seed: int = 0) -> Outcome:
        """A fresh model after the chain. A restorer gets a model half of whose weights are zero."""
        model = self.model()
        outcome = Outcome(model, Compression(), model.structure().size)
        if self.entry.facts.get("role") == "restorer":
            _mask_half(self.job(outcome, seed))
        for link in self.links(words):
            # As a run does: what a method draws is a function of the seed, wherever it draws it from.
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            link.method(link.options).apply(self.job(outcome, seed))
        return outcome

    def job(self, outcome: Outcome, seed: int) -> Job:
        """A job in a folder of its own: no two runs meet in a checkpoint."""
        self.runs += 1
        here = Surroundings(
            seed, self.folder / f"run-{self.runs}", identity={"check": self.runs}, progress=self.screen.progress
        )
        return Job(outcome.model, self.task, self.store, here, state=outcome.state, dense=self.model)

    def outputs(self, model: Model) -> Tensor:
        """The logits of one training batch, in one row."""
        model.net.eval()
        batch = self.job(Outcome(model, Compression(), 0), 0).data.calibration(8)[0]
        with torch.inference_mode():
            logits = [part for part, _ in self.capability.outputs(model, batch).logits]
        return torch.cat([part.float().flatten() for part in logits]).cpu()


def _tiny_model(task: str) -> tuple[Card, Any]:
    """A small model of suite mini, the default of the task, or a classifier of the package: its card and family."""
    if task:
        table("tasks").get(task)  # raises UserError for a misspelled name
    for entry in table("models").entries.values():
        facts = entry.facts
        defaults = facts.get("default_for") or ()
        if facts.get("suite") != "mini" or not (task in defaults if task else entry.built_in and defaults):
            continue
        if task or "classify" in facts["capabilities"]:
            family = entry.load()
            return next(card for card in family.cards if card.name == entry.name), family
    if task:
        raise UserError(f"no model of suite mini is the default of task={task}: name another task, or none.")
    raise UserError("this installation lacks the mini models: reinstall vlbench.")


def _baseline() -> str:
    return next(e.name for e in table("methods").entries.values() if e.facts.get("role") == "baseline")


def _mask_half(job: Job) -> None:
    """Half of every matrix to zero, by magnitude: what a restorer is tried on."""
    net = job.model.net
    scores = {name: net.get_parameter(name).detach().abs() for name in job.changes.structure.matrices}
    job.changes.mask({name: keep_fraction(score, 0.5) for name, score in scores.items()}, "unstructured")


def _noise(root: Path, classes: Sequence[str], size: int) -> Path:
    """An ImageNet-style folder of noise, a tenth of whose training images are in the select split."""
    noise = np.random.default_rng(0)
    for name in classes:
        for split, images in (("train", _names(name, IMAGES)), ("val", [f"{i}.png" for i in range(2)])):
            folder = root / split / name
            folder.mkdir(parents=True)
            for image in images:
                pixels = noise.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / image)
    return root


def _names(folder: str, count: int) -> list[str]:
    """File names of which two are cut off for the select split (task.held_out)."""
    names = (f"{folder}_{i}.png" for i in range(100_000))
    select: list[str] = []
    train: list[str] = []
    for name in names:
        (select if held_out(f"{folder}/{name}", 2) else train).append(name)
        if len(select) >= 2 and len(train) >= count:
            break
    return select[:2] + train[:count]
