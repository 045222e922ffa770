"""The links of a chain, applied one after the other, each from what the one before has saved."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..calibration.shared import SharedWith
from ..cell.cell import Cell
from ..cell.spec import LinkSpec
from ..compression.saved import is_saved, load_model, save_model
from ..compression.state import Compression
from ..disk import checksums
from ..disk.storage import remove_folder
from ..errors import RunFailed
from ..evaluation.predictions import PASSES, discard
from ..images.pipeline import ImageStore
from ..job import Job, Progress, Surroundings
from ..machine.memory import KEPT, return_heap
from ..machine.workers import ALONE, World
from ..model import Model
from ..tensors.reading import bf16_stays
from .agreement import outputs_of, process_wide, refuse_other, refuse_process_wide
from .moved import Witness


@dataclass(frozen=True)
class Compressor:
    """Applies a cell's chain in its folder. dense: makes the dense model beside the one that a link works on, for links
    that learn from it. opened: opens what the chain begins with, on the host."""

    cell: Cell
    folder: Path
    images: ImageStore
    runs: Path
    world: World
    checkpoint_seconds: float
    progress: Progress
    dense: Callable[[Model], Model]
    opened: Callable[[], Model]

    def applied(self, model: Model, state: Compression) -> tuple[Model, Compression]:
        """The model after every link, resuming after the last one that was finished. All workers do this, and go on
        from the leading one's files."""
        if self.cell.is_dense:
            return model, state
        links, leads = self.cell.spec.links, self.world.leads
        stages = [self.folder / "checkpoint" / f"after-{i}-{link.entry.name}" for i, link in enumerate(links)]
        stages[-1] = self.folder / "model"
        last = max((i + 1 for i, stage in enumerate(stages) if is_saved(stage)), default=0) if leads else 0
        done = int(self.world.share("links that are done", str(last)))
        if done:
            if leads:
                checksums.take(self.folder, self._name(stages[done - 1]))
            model, state = self._opened(stages[done - 1])
        if done < len(links) and leads:  # predictions that lie here are of a model that was deleted
            for name in PASSES:
                discard(self.folder / f"{name}.jsonl")
        for number, link in list(enumerate(links))[done:]:
            model, state = self._link(link, stages[number], model, state, stages[number - 1] if number else None)
        self.world.barrier("the chain is applied")  # nobody removes what another still reads
        if leads:
            shutil.rmtree(self.folder / "checkpoint", ignore_errors=True)
        return model, state

    def _link(
        self, link: LinkSpec, stage: Path, model: Model, state: Compression, before: Path | None
    ) -> tuple[Model, Compression]:
        """Apply one link, save what it says it did, and go on from what was saved, killed or not. before: where the
        link before saved, None where it is the first. Raises RunFailed where the model that was saved is not the model
        that the link left."""
        leads, name, capability = self.world.leads, self._name(stage), self.cell.task.capability
        witness = Witness(model, state, partial(self._again, before)) if leads and not state.trained else None
        everywhere = process_wide(model.net)
        if leads or link.method.parallel:
            self._apply(link, model, state)
        refuse_process_wide(everywhere, model.net, link.entry.name)
        return_heap(KEPT)  # what the link worked with
        if witness is not None:
            witness.refuse_moved(model, state, link.entry.name)
            del witness
        computed = outputs_of(model, capability) if leads else []
        if leads:
            checksums.forget(self.folder, name)
            save_model(stage, model, state)
        self.world.barrier(f"{name} is saved")
        dtype = model.dtype
        model.net.to("meta")  # its memory is free, though others still hold the object
        model, state = self._opened(stage)
        if leads:
            try:
                refuse_other(computed, outputs_of(model, capability), link.entry.name, dtype)
            except RunFailed:
                remove_folder(stage)
                raise
            checksums.note(self.folder, name)
        return_heap(KEPT)
        return model, state

    def _apply(self, link: LinkSpec, model: Model, state: Compression) -> None:
        words, first = self.cell.spec.words, link is self.cell.spec.links[0]
        here = Surroundings(
            words.seed, self.folder, identity=_described(self.cell), precision=words.precision,
            checkpoint_seconds=self.checkpoint_seconds, progress=self.progress,
            world=self.world if link.method.parallel else ALONE,
            shared=SharedWith(self.runs / "calibration", self.cell.shared_identity()) if first else None,
        )  # fmt: skip
        source = self.cell.sources.get(link.entry.name)
        dense = partial(self.dense, model)
        job = Job(
            model, self.cell.task, self.images, here, state=state, dense=dense, source=source, train=self.cell.learnt
        )
        _seed(words.seed)
        link.method(link.options).apply(job)

    def _again(self, stage: Path | None) -> Model:
        """The model that a link was given, once more and on the host."""
        with bf16_stays(self.cell.spec.words.precision == "bf16"):
            return self.opened() if stage is None else load_model(stage)[0]

    def _opened(self, stage: Path) -> tuple[Model, Compression]:
        with bf16_stays(self.cell.spec.words.precision == "bf16"):
            model, state = load_model(stage)
        model.place(self.cell.spec.words.precision)
        return model, state

    def _name(self, stage: Path) -> str:
        return stage.relative_to(self.folder).as_posix()


def _seed(seed: int) -> None:
    """Every link starts from the same random state, whatever ran before it in this process or in a killed one."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _described(cell: Cell) -> dict[str, Any]:
    """What a checkpoint must agree on: the cell, and in words what it is, for the sentence where it does not."""
    described = {"cell": cell.id, "task": cell.spec.words.task, "model": cell.spec.model.name, "seed": cell.seed}
    for link in cell.spec.links:
        options = cell.options_of(link)
        described.update({f"{link.entry.name}.{name}": value for name, value in options.items()})
    return described
