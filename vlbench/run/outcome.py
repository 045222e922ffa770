"""What a cell's predictions come to: metrics and their intervals, the difference to dense, the record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..cell.cell import Cell
from ..cell.spec import LinkSpec
from ..compression.saved import is_saved, manifest_digest
from ..compression.state import Compression
from ..errors import RunFailed, UserError
from ..evaluation.predictions import Line, read_predictions
from ..model import Model
from ..records.record import Interval, Link, Parameters, Record, VersusDense, pack_clusters, pack_scores, unpack_scores
from ..records.statistics import bootstrap, bounded, interval, versus
from ..task import Score, Task
from .flags import flags_of, parity_flags
from .provenance import provenance


def record_of(
    cell: Cell, model: Model, state: Compression, lines: list[Line], dense: Record | None, runs: Path, *,
    parameters: Parameters, macs: tuple[int | None, int | None], phases: dict[str, float], seconds: float, workers: int,
) -> Record:  # fmt: skip
    """The record of a cell in `runs` whose predictions are `lines`. dense: its baseline's. macs: of the model as it is
    and of the dense one. seconds: wall time. Raises RunFailed where every sample failed."""
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
        chain=[link_record(cell, link) for link in spec.links],
        pattern=state.pattern, trained=state.trained, seed=cell.seed, sparsity_target=spec.target,
        evaluation=cell.evaluation,
        parameters=parameters, macs=macs[0], macs_dense=macs[1], budget=state.budget,
        n_tuned=state.n_tuned, metric=task.metric, metrics=metrics, unmeasured=task.unmeasured(), interval=spread,
        vs_dense=_versus(task, runs, [s.id for s in samples], scores, clusters, None if bad else dense),
        complete=not bad,
        flags=[
            *flags_of(cell, model.card, bad, parameters, state.n_tuned),
            *parity_flags(cell, model.card, task.metric, spread, dense),
        ],
        identity=cell.identity,
        provenance=provenance(seconds, workers), phases=phases, scores=pack_scores(scores),
        sample_clusters=pack_clusters(clusters),
        model_digest="" if cell.is_dense else manifest_digest(runs / cell.id / "model"),
    )  # fmt: skip


def _versus(
    task: Task, runs: Path, ids: list[str], scores: list[Score], clusters: list[str], dense: Record | None
) -> VersusDense | None:
    """The paired difference to the dense cell; None for it itself, and where samples are missing."""
    if dense is None or not dense.complete:
        return None
    file = runs / dense.cell / "predictions.jsonl"
    theirs, ours = (line["score"] for line in read_predictions(file, ids)), unpack_scores(dense.scores)
    table = _table(list(theirs))
    if ours.shape != table.shape or not np.allclose(table, ours, rtol=1e-6, atol=1e-5):
        raise UserError(f"{file} does not say what its result.json says: delete that folder and run again.")
    return difference_of(task, scores, table, clusters)


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
    """Of a mean: cluster-robust; of a corpus metric: by the bootstrap. Within the metric's scale."""
    if task.corpus:
        return bounded(bootstrap(_table(scores), None, clusters, task.corpus_metric), *task.bounds)
    return bounded(interval(percent(scores), clusters), *task.bounds)


def link_record(cell: Cell, link: LinkSpec) -> Link:
    """A link of the cell's chain, as records have it."""
    return Link(name=link.entry.name, version=link.version, options=cell.options_of(link))


def _own(cell: Cell) -> str:
    """Own weights are never mixed with the card's: without label= they carry the file's name, or the run's."""
    if not cell.spec.words.checkpoint:
        return ""
    return cell.weights.absolute().parent.name if is_saved(cell.weights) else cell.weights.stem
