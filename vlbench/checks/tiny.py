"""Where a method is tried out: a tiny model with random weights and a data set of noise, both made here."""

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

from ..cell.resolve import resolve
from ..cell.spec import LinkSpec
from ..compression.masks import keep_fraction
from ..compression.state import Compression
from ..errors import UserError
from ..images.pipeline import ImageStore
from ..job import Job, Surroundings
from ..machine.ui import Screen
from ..model import Card, Model
from ..plugins.entry import Entry
from ..plugins.table import table
from ..plugins.workspace import package_folder
from ..task import Task, TaskOptions, held_out

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

    def __init__(self, entry: Entry, folder: Path, screen: Screen) -> None:
        self.entry, self.folder, self.screen = entry, folder, screen
        self.card, self.family, self.config = _tiny_model()
        task = table("tasks").get(self.card.default_for[0])
        self.task_name = task.name
        root = _noise(folder / "data", self.config["label_names"][:CLASSES], self.card.image.size)
        self.task: Task = task.load()(root, _default_options(task))
        self.store = ImageStore(self.card.image)
        self.runs = 0

    def model(self) -> Model:
        """The same random weights every time, none of them zero, on the device of this process."""
        torch.manual_seed(0)
        model: Model = self.family.build(self.card, self.config, self.folder)
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
        """Logits of one batch."""
        model.net.eval()
        batch = self.job(Outcome(model, Compression(), 0), 0).data.calibration(8)[0]
        with torch.inference_mode():
            logits: Tensor = model.logits(model.encode(batch.images))  # type: ignore[attr-defined]
        return logits.float().cpu().clone()


def _tiny_model() -> tuple[Card, Any, dict[str, Any]]:
    """A small classifier of the package: its card, family and configuration (not its weights)."""
    for entry in table("models").entries.values():
        folder = package_folder("registry.mini") / entry.name
        fits = entry.built_in and "classify" in entry.facts["capabilities"] and entry.facts.get("default_for")
        if fits and (folder / "config.json").is_file():
            family = entry.load()
            card = next(card for card in family.cards if card.name == entry.name)
            return card, family, json.loads((folder / "config.json").read_text(encoding="utf-8"))
    raise UserError("this installation lacks the mini models: reinstall vlbench.")


def _default_options(task: Entry) -> TaskOptions:
    options: TaskOptions = task.load().Options()
    return options


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
