"""One cell, from spec to record: the story of the whole program on one page.

spec -> build model -> evaluate dense (once, shared) -> apply each link -> evaluate -> measure cost -> record
"""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import sums
from .cell import Cell, open_cell, told_options
from .cost.counts import count_parameters, stated_macs
from .data.images import ImageStore
from .data.sources import refuse_too_few
from .errors import RunFailed, UserError
from .evaluation.loop import Evaluator
from .evaluation.predictions import PASSES, Line, Predictions, discard, read_predictions
from .flags import flags_of, parity_flags
from .job import Compression, Job
from .launch.world import ALONE, World
from .leaderboard.statistics import bootstrap, interval, versus
from .lease import LeaseLost, lease
from .memory import keep_heap, refuse_second_copy, return_heap
from .method import Method
from .model import Model
from .provenance import provenance
from .pruning.known import Common
from .pruning.saved import is_saved, load_model, manifest_digest, open_checkpoint, save_model
from .record import (
    Interval,
    Link,
    Parameters,
    Record,
    VersusDense,
    pack_clusters,
    pack_scores,
    read_record,
    unpack_scores,
    write_record,
)
from .resolve import resolve
from .spec import LinkSpec
from .storage import json_text, write_json
from .task import Score, Task
from .ui import Screen

DONE = "done"  # what the leading worker says of a cell that has its record


class Runner:
    """Runs cells into the folder `runs`."""

    def __init__(self, runs: Path, screen: Screen, *, checkpoint_seconds: float = 15.0, world: World = ALONE) -> None:
        self.runs, self.screen, self.checkpoint_seconds, self.world = runs, screen, checkpoint_seconds, world
        self._lost = threading.Event()  # the cell at work is another's now
        keep_heap()

    def run(self, words: Mapping[str, str]) -> Record:
        """The record of the cell that `words` describe, from disk where it is done."""
        cell = open_cell(resolve(words), lambda done, total: self.screen.progress("mini world", done, total))
        return self.cell(cell)

    def cell(self, cell: Cell) -> Record:
        """Run one cell, its dense baseline first."""
        folder = self.runs / cell.id
        if not self.world.leads:
            return self._follow(cell, folder)
        if (folder / "result.json").is_file():
            sums.check(folder, "result.json")
        found = finished(folder)
        self.world.share(DONE if found else "")
        if found is not None:
            return found
        self._check(cell)
        dense = self.cell(cell.dense()) if _has_baseline(cell) else None
        self._lost.clear()
        try:
            with lease(folder, lambda: (folder / "result.json").is_file(), self.screen.say, self._lost) as mine:
                self.world.share("" if mine else DONE)
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

    def _check(self, cell: Cell) -> None:
        """What the links cannot do to this model, or with so few samples, is told before the dense model is evaluated,
        which may take hours. (Where that is done, _work asks the methods, before it writes anything.)"""
        refuse_too_few(cell.spec, cell.task, cell.sources)
        dense = self.runs / cell.dense().id / "result.json"
        if _asks(cell) and _has_baseline(cell) and not dense.is_file():
            ask(cell, self._build(cell)[0])

    def _follow(self, cell: Cell, folder: Path) -> Record:
        """What the other workers do of a cell: their share of the compression and of the evaluation."""
        if self.world.share() == DONE:
            return read_record(folder / "result.json")
        if _has_baseline(cell):
            self._follow(cell.dense(), self.runs / cell.dense().id)
        if self.world.share() != DONE:
            model, state = self._build(cell)
            store = ImageStore(model.card.image)
            model, state = self._compress(cell, folder, model, state, store)
            self._evaluate(cell, folder, model, store)
            if not cell.settings["labelled"]:
                raise Uploaded(folder)
            self.world.share()  # the record is there
        return read_record(folder / "result.json")

    def _work(self, cell: Cell, folder: Path, dense: Record | None) -> Record:
        start = time.monotonic()
        model, state = self._build(cell)  # first: weights that do not fit leave nothing behind
        original = model.structure()
        ask(cell, model)
        words = cell.spec.words.model_dump()
        write_json(folder / "cell.json", {"cell": cell.id, "words": words, "identity": cell.identity})
        store = ImageStore(model.card.image)
        dense_size = sum(p.numel() for p in model.net.parameters())
        macs_dense = macs_of(model, cell.task)
        prunable = original.size
        towers = original.tower_sizes()
        model, state = self._compress(cell, folder, model, state, store)
        lines, phases = self._evaluate(cell, folder, model, store)
        if not cell.settings["labelled"]:
            return self._upload(cell, folder, lines)
        record = self._record(
            cell, model, state, lines, dense,
            parameters=count_parameters(model, dense=dense_size, prunable=prunable, towers=towers),
            macs=(macs_of(model, cell.task), macs_dense),
            phases=phases, seconds=time.monotonic() - start,
        )  # fmt: skip
        sums.announce(folder, "result.json", json_text(record.model_dump(mode="json")))
        write_record(folder / "result.json", record)
        self.world.share()
        return record

    def _build(self, cell: Cell) -> tuple[Model, Compression]:
        """The dense model on its device (of a compressed checkpoint, that), and what is to be saved with it."""
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
        """Apply each link of the chain, resuming after the last one that was finished. All workers do this, and go on
        from the leading one's files."""
        links = cell.spec.links
        if cell.is_dense:
            return model, state
        stages = [folder / "checkpoint" / f"after-{i}-{link.entry.name}" for i, link in enumerate(links)]
        stages[-1] = folder / "model"
        leads = self.world.leads
        found = max((i + 1 for i, stage in enumerate(stages) if is_saved(stage)), default=0) if leads else 0
        done = int(self.world.share(str(found)))
        names = [stage.relative_to(folder).as_posix() for stage in stages]
        if done and leads:
            sums.take(folder, names[done - 1])
        if done:
            model, state = _loaded(stages[done - 1], cell.spec.words.precision)
        if done < len(links) and leads:  # predictions that lie here are of a model that was deleted
            for name in PASSES:
                discard(folder / f"{name}.jsonl")
        for link, stage, name in list(zip(links, stages, names, strict=True))[done:]:
            if leads or link.method.parallel:
                self._apply(cell, folder, link, model, state, store)
            if leads:
                sums.forget(folder, name)
                save_model(stage, model, state)
                sums.note(folder, name)
            self.world.barrier()
            # Go on from what was saved, killed or not: what a link leaves behind besides (frozen parameters, hooks)
            # would be there in an undisturbed run only.
            model.net.to("meta")  # its memory is free, though others still hold the object
            model, state = _loaded(stage, cell.spec.words.precision)
        self.world.barrier()  # nobody removes what another still reads
        if leads:
            shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        return model, state

    def _apply(
        self, cell: Cell, folder: Path, link: LinkSpec, model: Model, state: Compression, store: ImageStore
    ) -> None:
        words = cell.spec.words
        first = link is cell.spec.links[0]
        job = Job(
            model, cell.task, seed=words.seed, folder=folder, store=store, state=state, identity=_described(cell),
            precision=words.precision, dense=partial(self._second, cell, model),
            checkpoint_seconds=self.checkpoint_seconds, progress=self._progress,
            source=cell.sources.get(link.entry.name), world=self.world if link.method.parallel else ALONE,
            common=Common(self.runs / "calibration", cell.shared_identity()) if first else None,
        )  # fmt: skip
        _seed(words.seed)
        link.method(link.options).apply(job)

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

    def _record(
        self, cell: Cell, model: Model, state: Compression, lines: list[Line], dense: Record | None, *,
        parameters: Parameters, macs: tuple[int | None, int | None], phases: dict[str, float], seconds: float,
    ) -> Record:  # fmt: skip
        spec, task = cell.spec, cell.task
        bad = [line["id"] for line in lines if line["status"] != "ok"]
        good = [(s, line["score"]) for s, line in zip(cell.samples, lines, strict=True) if line["status"] == "ok"]
        if not good:
            raise RunFailed(f"all {len(lines)} samples failed, the first with: {lines[0].get('error')}")
        samples, scores = [s for s, _ in good], [score for _, score in good]
        clusters = [s.cluster for s in samples]
        metrics, spread = task.aggregate(samples, scores), interval_of(task, scores, clusters)
        return Record(
            cell=cell.id, suite=spec.words.suite, task=spec.task.name, task_version=task.version,
            split=cell.split, split_digest=cell.split_digest, samples=len(lines),
            clusters=spread.clusters,
            model=spec.model.name, label=spec.words.label or _own(cell), weights_digest=cell.weights_digest,
            method=spec.method, recipe=spec.recipe,
            chain=[_link(cell, link) for link in spec.links],
            pattern=state.pattern, trained=state.trained, seed=cell.seed, sparsity_target=spec.target,
            evaluation=cell.evaluation,
            parameters=parameters, macs=macs[0], macs_dense=macs[1], budget=state.budget,
            n_tuned=state.n_tuned, metric=task.metric, metrics=metrics, unmeasured=task.unmeasured(), interval=spread,
            vs_dense=self._versus(task, [s.id for s in samples], scores, clusters, dense, bad),
            complete=not bad,
            flags=[
                *flags_of(cell, model.card, bad, parameters, state.n_tuned),
                *parity_flags(cell, model.card, task.metric, spread, dense),
            ],
            identity=cell.identity,
            provenance=provenance(seconds, self.world.size), phases=phases, scores=pack_scores(scores),
            sample_clusters=pack_clusters(clusters),
            model_digest="" if cell.is_dense else manifest_digest(self.runs / cell.id / "model"),
        )  # fmt: skip

    def _versus(
        self,
        task: Task,
        ids: list[str],
        scores: list[Score],
        clusters: list[str],
        dense: Record | None,
        bad: list[str],
    ) -> VersusDense | None:
        """The paired difference to the dense cell; None for it itself, and where samples are missing."""
        if dense is None or bad or not dense.complete:
            return None
        file = self.runs / dense.cell / "predictions.jsonl"
        theirs, told = (line["score"] for line in read_predictions(file, ids)), unpack_scores(dense.scores)
        found = _table(list(theirs))
        if told.shape != found.shape or not np.allclose(found, told, rtol=1e-6, atol=1e-5):
            raise UserError(f"{file} does not say what its result.json says: delete that folder and run again.")
        return difference_of(task, scores, found, clusters)

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
    cls = cell.spec.model.load()
    return open_checkpoint(cls, next(c for c in cls.cards if c.name == cell.spec.model.name), cell.weights)


def _loaded(stage: Path, precision: str) -> tuple[Model, Compression]:
    model, state = load_model(stage)
    model.place(precision)
    return model, state


def macs_of(model: Model, task: Task) -> int | None:
    """Of the capability's stated sample (cost/stated.py), which no faster loop changes. None for a model that cannot be
    given one: a family of one's own without `tokenizer`."""
    try:
        return stated_macs(model, task.capability)
    except UserError:
        return None


def ask(cell: Cell, model: Model) -> None:
    """Raise UserError for what the links cannot do to the model that the chain begins with."""
    first = cell.spec.links[0]
    first.method(first.options).check(model.structure())
    for link in cell.spec.links:
        link.method(link.options).check_model(model)


def _asks(cell: Cell) -> bool:
    """Whether a link wants to see the model before anything is done."""
    first, *_ = methods = [link.method for link in cell.spec.links]
    return first.check is not Method.check or any(one.check_model is not Method.check_model for one in methods)


def _has_baseline(cell: Cell) -> bool:
    """Whether the cell is compared with the dense model."""
    return not cell.is_dense and bool(cell.settings["labelled"])


def _seed(seed: int) -> None:
    """Every link starts from the same random state, whatever ran before it in this process or in a killed one."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def finished(folder: Path) -> Record | None:
    """The record of a finished cell, or None. Raises UserError where it is damaged."""
    return read_record(folder / "result.json") if (folder / "result.json").is_file() else None


def percent(scores: Sequence[Score]) -> NDArray[np.float64]:
    """Per-sample values of the primary metric in percent: the first number of every score."""
    return 100.0 * _table(scores)[:, 0]


def _table(scores: Sequence[Score]) -> NDArray[np.float64]:
    """(samples, statistics)."""
    return np.array([s if isinstance(s, list) else [s] for s in scores], dtype=np.float64)


def difference_of(
    task: Task, scores: Sequence[Score], dense: NDArray[np.float64], clusters: Sequence[str]
) -> VersusDense:
    """Paired, of the primary metric. dense: (samples, statistics)."""
    if task.corpus:
        return bootstrap(_table(scores), dense, clusters, task.corpus_metric)
    return versus(percent(scores), 100 * dense[:, 0], clusters)


def interval_of(task: Task, scores: Sequence[Score], clusters: Sequence[str]) -> Interval:
    """Of a mean: cluster-robust; of a corpus metric: by the bootstrap."""
    if task.corpus:
        return bootstrap(_table(scores), None, clusters, task.corpus_metric)
    return interval(percent(scores), clusters)


def _link(cell: Cell, link: LinkSpec) -> Link:
    name = link.entry.name
    return Link(name=name, version=link.version, options=told_options(link, cell.sources.get(name)))


def _described(cell: Cell) -> dict[str, Any]:
    """What a checkpoint must agree on: the cell, and in words what it is, for the sentence where it does not."""
    words = cell.spec.words
    told = {"cell": cell.id, "task": words.task, "model": cell.spec.model.name, "seed": cell.seed}
    for link in cell.spec.links:
        options = told_options(link, cell.sources.get(link.entry.name))
        told.update({f"{link.entry.name}.{name}": value for name, value in options.items()})
    return told


def _own(cell: Cell) -> str:
    """Own weights are never mixed with the card's: without label= they carry the file's name, or the run's."""
    if not cell.spec.words.checkpoint:
        return ""
    return cell.weights.absolute().parent.name if is_saved(cell.weights) else cell.weights.stem


def refuse_unwritable(folder: Path) -> None:
    """Raise UserError before any work where `folder` cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror}. Choose another folder with --runs.") from error
