"""One cell, from spec to record: the story of the whole program on one page.

spec -> build model -> evaluate dense (once, shared) -> apply each link -> evaluate -> measure cost -> record
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..capability import capability_of
from ..cell.again import described
from ..cell.cell import Cell, open_cell
from ..cell.resolve import resolve
from ..cell.sources import refuse_too_few
from ..compression.saved import open_checkpoint
from ..compression.state import Compression
from ..cost.counts import count_parameters, macs_of
from ..disk import checksums
from ..disk.lease import LeaseLost, lease
from ..disk.storage import json_text, write_json
from ..errors import RunFailed, UserError
from ..evaluation.loop import Evaluator
from ..evaluation.perturbation import perturbation_of
from ..evaluation.predictions import Line, Predictions
from ..images.kept import KeptPixels, budget_bytes
from ..images.pipeline import ImageStore
from ..machine.device import refuse_precision
from ..machine.memory import keep_heap, refuse_second_copy, return_heap
from ..machine.ui import Screen
from ..machine.workers import ALONE, World
from ..method import Method
from ..model import Card, Model
from ..records.record import Record, intact, read_record, write_record
from ..tensors.reading import bf16_stays
from .compress import Compressor
from .outcome import record_of

DONE = "done"  # what the leading worker says of a cell that has its record


class Runner:
    """Runs cells into the folder `runs`."""

    def __init__(self, runs: Path, screen: Screen, *, checkpoint_seconds: float = 15.0, world: World = ALONE) -> None:
        self.runs, self.screen, self.checkpoint_seconds, self.world = runs, screen, checkpoint_seconds, world
        self._said: set[Path] = set()  # folders whose preprocessing was told
        self._lost = threading.Event()  # the cell at work is another's now
        keep_heap()

    def run(self, words: Mapping[str, str]) -> Record:
        """The record of the cell that `words` describe, from disk where it is done."""
        return self.cell(open_cell(resolve(words), self.screen.building, self.screen.digesting))

    def cell(self, cell: Cell) -> Record:
        """Run one cell, its dense baseline first."""
        folder = self.runs / cell.id
        if not self.world.leads:
            return self._follow(cell, folder)
        record = intact(folder)
        self.world.share(f"is {cell.id} done", DONE if record else "")
        if record is not None:
            return record
        self._check(cell)
        dense = self.cell(cell.dense()) if _has_baseline(cell) else None
        self._lost.clear()
        try:
            with lease(folder, lambda: (folder / "result.json").is_file(), self.screen.say, self._lost) as mine:
                self.world.share(f"who works on {cell.id}", "" if mine else DONE)
                return self._work(cell, folder, dense) if mine else read_record(folder / "result.json")
        except LeaseLost as told:
            if self.world.size > 1:
                raise  # the other workers are in the middle of it: torchrun ends them
            self.screen.say(str(told))
            return self.cell(cell)
        finally:
            return_heap()

    def _progress(self, what: str, done: int, total: int, text: str = "") -> None:
        """Called at every step of whatever takes time. Raises LeaseLost."""
        if self._lost.is_set():
            raise LeaseLost("another vlbench took this cell over while this machine gave no sign of life")
        self.screen.progress(what, done, total, text)

    def _say_preprocessing(self, cell: Cell) -> None:
        """One line where the weights' folder says of its images something else than the card."""
        if cell.own_preprocessing and cell.weights not in self._said:
            self._said.add(cell.weights)
            self.screen.say(
                f"{cell.weights} says of its images {cell.own_preprocessing}, and the card of {cell.spec.model.name} "
                "says otherwise: the folder's word is taken (preprocessing=card takes the card's)."
            )

    def _check(self, cell: Cell) -> None:
        """What the device cannot do, or the links to this model or with so few samples, is told before the dense model
        is evaluated, which may take hours. (Where that is done, _work asks the methods, before it writes anything.)"""
        refuse_precision(cell.spec.words.precision)
        budget_bytes()
        perturbation_of(cell.settings).check(cell.samples, cell.spec.task.name)
        refuse_too_few(cell.spec, cell.task, cell.sources, cell.learnt)
        dense = self.runs / cell.dense().id / "result.json"
        if _asks(cell) and _has_baseline(cell) and not dense.is_file():
            ask(cell, self._build(cell)[0])

    def _follow(self, cell: Cell, folder: Path) -> Record:
        """What the other workers do of a cell: their share of the compression and of the evaluation."""
        if self.world.share(f"is {cell.id} done") == DONE:
            return read_record(folder / "result.json")
        if _has_baseline(cell):
            self._follow(cell.dense(), self.runs / cell.dense().id)
        if self.world.share(f"who works on {cell.id}") != DONE:
            model, state = self._build(cell)
            store = _store(model)
            model, state = self._compress(cell, folder, model, state, store)
            self._evaluate(cell, folder, model, store)
            if not cell.settings["labelled"]:
                raise Uploaded(folder)
            self.world.share(f"the record of {cell.id} is written")
        return read_record(folder / "result.json")

    def _work(self, cell: Cell, folder: Path, dense: Record | None) -> Record:
        start = time.monotonic()
        model, state = self._build(cell)  # first: weights that do not fit leave nothing behind
        original = model.structure()
        refuse_images(cell, model)
        ask(cell, model)
        self._say_preprocessing(cell)
        for remark in cell.task.remarks(cell.split) if cell.is_dense else ():
            self.screen.say(remark)
        write_json(folder / "cell.json", described(cell))
        store = _store(model)
        dense_size = sum(p.numel() for p in model.net.parameters())
        macs_dense = macs_of(model, cell.task)
        prunable = original.size
        towers = original.tower_sizes()
        model, state = self._compress(cell, folder, model, state, store)
        lines, phases = self._evaluate(cell, folder, model, store)
        if not cell.settings["labelled"]:
            return self._upload(cell, folder, lines)
        record = record_of(
            cell, model, state, lines, dense, self.runs,
            parameters=count_parameters(model, dense=dense_size, prunable=prunable, towers=towers),
            macs=(macs_of(model, cell.task), macs_dense),
            phases=phases, seconds=time.monotonic() - start, workers=self.world.size,
        )  # fmt: skip
        checksums.announce(folder, "result.json", json_text(record.model_dump(mode="json")))
        write_record(folder / "result.json", record)
        self.world.share(f"the record of {cell.id} is written")
        return record

    def _build(self, cell: Cell) -> tuple[Model, Compression]:
        """The dense model on its device (of a compressed checkpoint, that), and what is to be saved with it."""
        with bf16_stays(cell.spec.words.precision == "bf16"):
            model, state = open_model(cell)
        model.place(cell.spec.words.precision)
        return model, state

    def _second(self, cell: Cell, model: Model) -> Model:
        """The dense model beside `model`, for a method that learns from it."""
        refuse_second_copy(model.net, "distillation")
        return self._build(cell)[0]

    def _compress(
        self, cell: Cell, folder: Path, model: Model, state: Compression, store: ImageStore
    ) -> tuple[Model, Compression]:
        return Compressor(
            cell, folder, store, self.runs, self.world, self.checkpoint_seconds, self._progress,
            dense=partial(self._second, cell), opened=lambda: open_model(cell)[0],
        ).applied(model, state)  # fmt: skip

    def _evaluate(
        self, cell: Cell, folder: Path, model: Model, store: ImageStore
    ) -> tuple[list[Line], dict[str, float]]:
        evaluator = Evaluator(
            model, cell.task, store, settings=cell.settings, batch_size=cell.batch_size,
            precision=cell.spec.words.precision,
            progress=lambda done, total, text: self._progress(f"evaluate {cell.spec.method}", done, total, text),
        )  # fmt: skip
        lines = evaluator.run(cell.samples, Predictions(folder / "predictions.jsonl", self.world))
        phases = {name: round(seconds, 3) for name, seconds in sorted(evaluator.phases.items())}
        return lines, {**phases, "backed_off": float(evaluator.backed_off)}

    def _upload(self, cell: Cell, folder: Path, lines: list[Line]) -> Record:
        """A split without labels ends with the server's file instead of a record."""
        bad = [line["id"] for line in lines if line["status"] != "ok"]
        if bad:
            raise RunFailed(f"{len(bad)} samples failed (first: {bad[0]}): no upload file is written.")
        file = cell.task.write_upload(cell.samples, [line["prediction"] for line in lines], folder)
        raise Uploaded(file)


class Uploaded(Exception):  # noqa: N818
    """Not a failure: the split has no labels, and the server's file was written."""

    def __init__(self, file: Path) -> None:
        super().__init__(str(file))
        self.file = file


def open_model(cell: Cell) -> tuple[Model, Compression]:
    """The dense model, on the CPU, and what must be saved again with what is made of it (`open_checkpoint`)."""
    return open_checkpoint(cell.spec.model.load(), card_of(cell), cell.weights)


def _store(model: Model) -> ImageStore:
    """Of decoded images; those that are kept on disk are of models without a preprocessing of their own."""
    own = type(model).views is not Model.views
    return ImageStore(model.card.image, model.views, kept=None if own else KeptPixels.here(model.card.image))


def card_of(cell: Cell) -> Card:
    """The card of the cell's model, with the preprocessing that its folder or the user says."""
    card: Card = next(c for c in cell.spec.model.load().cards if c.name == cell.spec.model.name)
    return replace(card, image=cell.image)


def ask(cell: Cell, model: Model) -> None:
    """Raise UserError for what the links cannot do to the model that the chain begins with."""
    first = cell.spec.links[0]
    first.method(first.options).check(model.structure())
    for link in cell.spec.links:
        link.method(link.options).check_model(model)
    capability_of(cell.task.capability).check_samples(model, cell.samples)


def refuse_images(cell: Cell, model: Model) -> None:
    """Raise UserError where samples show more images than the model reads at once: it would leave some out unsaid."""
    most, name = model.most_images(cell.task.capability), cell.spec.task.name
    several = [sample for sample in cell.samples if most is not None and len(sample.images) > most]
    if several:
        shown = max(len(sample.images) for sample in several)
        remedy = cell.task.fewer_images or "name another model with model="
        raise UserError(
            f"{len(several)} samples of task={name} show up to {shown} images, and {cell.spec.model.name} reads {most} "
            f"at once: {remedy}."
        )


def _asks(cell: Cell) -> bool:
    """Whether a link wants to see the model before anything is done."""
    first, *_ = methods = [link.method for link in cell.spec.links]
    return first.check is not Method.check or any(m.check_model is not Method.check_model for m in methods)


def _has_baseline(cell: Cell) -> bool:
    """Whether the cell is compared with the dense model."""
    return not cell.is_dense and bool(cell.settings["labelled"])
