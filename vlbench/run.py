"""One cell, from spec to record: the story of the whole program on one page.

spec -> build model -> evaluate dense (once, shared) -> apply each link -> evaluate -> measure cost -> record
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .cell import Cell, open_cell
from .cost.counts import count_parameters, stated_macs
from .data.images import ImageStore
from .errors import RunFailed, UserError
from .evaluation.loop import Evaluator
from .evaluation.predictions import PASSES, Line, Predictions, discard, read_predictions
from .job import Compression, Job
from .launch.world import ALONE, World
from .leaderboard.statistics import bootstrap, interval, versus
from .lease import lease
from .model import Model
from .provenance import provenance
from .pruning.modality import collapsed
from .pruning.saved import is_saved, load_model, save_model
from .record import (
    Interval,
    Link,
    Parameters,
    Record,
    VersusDense,
    pack_scores,
    read_record,
    unpack_scores,
    write_record,
)
from .resolve import resolve
from .spec import LinkSpec
from .storage import write_json
from .task import Score, Task
from .ui import Screen

DONE = "done"  # what the leading worker says of a cell that has its record


class Runner:
    """Runs cells into the folder `runs`."""

    def __init__(self, runs: Path, screen: Screen, *, checkpoint_seconds: float = 15.0, world: World = ALONE) -> None:
        self.runs, self.screen, self.checkpoint_seconds, self.world = runs, screen, checkpoint_seconds, world

    def run(self, words: Mapping[str, str]) -> Record:
        """The record of the cell that `words` describe, from disk where it is done."""
        cell = open_cell(resolve(words), lambda done, total: self.screen.progress("mini world", done, total))
        return self.cell(cell)

    def cell(self, cell: Cell) -> Record:
        """Run one cell, its dense baseline first."""
        folder = self.runs / cell.id
        if not self.world.leads:
            return self._follow(cell, folder)
        found = finished(folder)
        self.world.share(DONE if found else "")
        if found is not None:
            return found
        dense = self.cell(cell.dense()) if _has_baseline(cell) else None
        with lease(folder, lambda: (folder / "result.json").is_file(), self.screen.say) as mine:
            self.world.share("" if mine else DONE)
            return self._work(cell, folder, dense) if mine else read_record(folder / "result.json")

    def _follow(self, cell: Cell, folder: Path) -> Record:
        """What the other workers do of a cell: their share of the evaluation. The leading one tells when."""
        if self.world.share() == DONE:
            return read_record(folder / "result.json")
        if _has_baseline(cell):
            self._follow(cell.dense(), self.runs / cell.dense().id)
        if self.world.share() != DONE:
            self.world.share()  # the model is there
            model = self._build(cell)[0] if cell.is_dense else load_model(folder / "model")[0]
            model.net.to("cuda" if torch.cuda.is_available() else "cpu")
            self._evaluate(cell, folder, model, ImageStore(model.card.image))
            if not cell.settings["labelled"]:
                raise Uploaded(folder)
            self.world.share()  # the record is there
        return read_record(folder / "result.json")

    def _work(self, cell: Cell, folder: Path, dense: Record | None) -> Record:
        start = time.monotonic()
        model, original = self._build(cell)  # first: weights that do not fit leave nothing behind
        words = cell.spec.words.model_dump()
        write_json(folder / "cell.json", {"cell": cell.id, "words": words, "identity": cell.identity})
        store = ImageStore(model.card.image)
        dense_size = sum(p.numel() for p in model.net.parameters())
        macs_dense = _macs(model, cell.task)
        prunable = original.size
        towers = original.tower_sizes()
        model, state = self._compress(cell, folder, model, store)
        self.world.share()
        lines, phases = self._evaluate(cell, folder, model, store)
        if not cell.settings["labelled"]:
            return self._upload(cell, folder, lines)
        record = self._record(
            cell, model, state, lines, dense,
            parameters=count_parameters(model, dense=dense_size, prunable=prunable, towers=towers),
            macs=(_macs(model, cell.task), macs_dense),
            phases=phases, seconds=time.monotonic() - start,
        )  # fmt: skip
        write_record(folder / "result.json", record)
        self.world.share()
        return record

    def _build(self, cell: Cell) -> tuple[Model, Any]:
        """The dense model on its device, and its structure before anything was done to it."""
        entry = cell.spec.model
        cls = entry.load()
        card = next(c for c in cls.cards if c.name == entry.name)
        model: Model = cls.open(card, cell.weights)
        model.net.to("cuda" if torch.cuda.is_available() else "cpu")
        return model, model.structure()

    def _compress(self, cell: Cell, folder: Path, model: Model, store: ImageStore) -> tuple[Model, Compression]:
        """Apply each link of the chain, resuming after the last one that was finished."""
        links = cell.spec.links
        if cell.is_dense:
            return model, Compression()
        stages = [folder / "checkpoint" / f"after-{i}-{link.entry.name}" for i, link in enumerate(links)]
        stages[-1] = folder / "model"
        done = max((i + 1 for i, stage in enumerate(stages) if is_saved(stage)), default=0)
        state = Compression()
        if done:
            model, state = load_model(stages[done - 1])
            model.net.to("cuda" if torch.cuda.is_available() else "cpu")
        if done < len(links):  # predictions that lie here are of a model that was deleted
            for name in PASSES:
                discard(folder / f"{name}.jsonl")
        for link, stage in list(zip(links, stages, strict=True))[done:]:
            job = Job(
                model, cell.task, seed=cell.spec.words.seed, folder=folder, store=store, state=state,
                identity={"cell": cell.id}, precision=cell.spec.words.precision,
                checkpoint_seconds=self.checkpoint_seconds, progress=self.screen.progress,
            )  # fmt: skip
            _seed(cell.spec.words.seed)
            link.method(link.options).apply(job)
            save_model(stage, model, state)
            # Go on from what was saved, killed or not: what a link leaves behind besides (frozen parameters, hooks)
            # would be there in an undisturbed run only.
            model.net.to("meta")  # its memory is free, though others still hold the object
            model, state = load_model(stage)
            model.net.to("cuda" if torch.cuda.is_available() else "cpu")
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
        return model, state

    def _evaluate(
        self, cell: Cell, folder: Path, model: Model, store: ImageStore
    ) -> tuple[list[Line], dict[str, float]]:
        evaluator = Evaluator(
            model, cell.task, store, settings=cell.settings, batch_size=cell.batch_size,
            precision=cell.spec.words.precision,
            progress=lambda done, total, text: self.screen.progress(f"evaluate {cell.spec.method}", done, total, text),
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
        metrics, spread = task.aggregate(samples, scores), _interval(task, scores, clusters)
        return Record(
            cell=cell.id, suite=spec.words.suite, task=spec.task.name, task_version=task.version,
            split=cell.split, split_digest=cell.split_digest, samples=len(lines),
            clusters=spread.clusters,
            model=spec.model.name, label=spec.words.label or _own(cell), weights_digest=cell.weights_digest,
            method=spec.method, recipe=spec.recipe,
            chain=[_link(link) for link in spec.links],
            pattern=state.pattern, trained=state.trained, seed=cell.seed, sparsity_target=spec.target,
            evaluation=cell.evaluation,
            parameters=parameters, macs=macs[0], macs_dense=macs[1], budget=state.budget,
            metric=task.metric, metrics=metrics, unmeasured=task.unmeasured(), interval=spread,
            vs_dense=self._versus(task, [s.id for s in samples], scores, clusters, dense, bad),
            complete=not bad, flags=_flags(cell, model, bad, parameters), identity=cell.identity,
            provenance=provenance(seconds), phases=phases, scores=pack_scores(scores),
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
        if task.corpus:
            return bootstrap(_table(scores), found, clusters, task.corpus_metric)
        return versus(percent(scores), 100 * found[:, 0], clusters)

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


def _macs(model: Model, task: Task) -> int | None:
    """Of the capability's stated sample (cost/stated.py), which no faster loop changes. None for a model that cannot be
    given one: a family of one's own without `tokenizer`."""
    try:
        return stated_macs(model, task.capability)
    except UserError:
        return None


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


def _interval(task: Task, scores: Sequence[Score], clusters: Sequence[str]) -> Interval:
    """Of a mean: cluster-robust; of a corpus metric: by the bootstrap."""
    if task.corpus:
        return bootstrap(_table(scores), None, clusters, task.corpus_metric)
    return interval(percent(scores), clusters)


def _link(link: LinkSpec) -> Link:
    return Link(name=link.entry.name, version=link.version, options=link.options.told())


def _own(cell: Cell) -> str:
    """Own weights are never mixed with the card's: without label= they carry the file's name."""
    return cell.weights.stem if cell.spec.words.checkpoint else ""


def _flags(cell: Cell, model: Model, bad: list[str], parameters: Parameters) -> list[str]:
    flags = []
    if cell.spec.words.limit:
        flags.append("limit")
    if bad:
        flags.append(f"{len(bad)} errors")
    if cell.spec.words.label or cell.spec.words.checkpoint:
        flags.append("own checkpoint")
    elif f"{cell.spec.task.name}/{cell.split}" in model.card.trained_on:
        flags.append("contaminated")
    return [*flags, *(f"modality collapse: {name}" for name in collapsed(parameters.towers))]


def refuse_unwritable(folder: Path) -> None:
    """Raise UserError before any work where `folder` cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror}. Choose another folder with --runs.") from error
