"""A finished run -> leaderboards/results: what it says is made again from what it left, and must be the same.

Scores and metrics from predictions.jsonl and the task's own answers, intervals from the scores, parameters, MACs and a
part of the predictions from the saved weights, options, recipe and flags from the run's words, and the identity from
this installation's task, data, weights and methods. What this cannot see is how the saved weights were made: a model
that was trained elsewhere on the report split is a model like others. The row's command is there for anyone to repeat.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cell.again import open_again
from ..comparison.rebuilt import dense_cell
from ..disk.storage import write_text
from ..errors import UserError
from ..evaluation.predictions import Line, read_predictions
from ..leaderboard.rows import agree
from ..records.record import Interval, Record, pack_clusters, pack_scores, read_record
from ..run.runner import open_model
from .claims import inconsistent, verify_chain, verify_data, verify_flags, verify_name, verify_origin
from .predicted import verify_predictions
from .regenerate import file_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..cell.cell import Cell
    from ..task import Score

# Bytes of a committed result: thousands of them must stay light in a repository. An accuracy takes 3 KB; the statistics
# of a corpus metric more (2,000 images of ADE20K about 120 KB).
LARGEST = 200_000
REFUSED = {"limit": "only some of its samples were evaluated", "label": "its weights are the submitter's own"}
TOLERANCE = 1e-9  # percent points between what the record says and what its predictions give
# What provenance must not tell the world: whose machine it was, and where things lay on its disk.
OF_THE_HOST = re.compile(r"host|user|home|cwd", re.IGNORECASE)
ABSOLUTE = re.compile(r"""(?:^|[\s=,;'"(]|:(?!//))(?:~?/[^\s/]|[A-Za-z]:[\\/]|\\\\|file:)""")
# (cell, file, its time) -> scores: the runs of a sweep have one baseline, and 1,000 captions' METEOR takes Java 15 s.
_DENSE: dict[tuple[str, Path, int], NDArray[np.float64]] = {}


def submit(run: Path, results: Path) -> Path:
    """Verify a finished run and copy its record to results/<suite>/<cell>.json; returns that path.

    Raises UserError, naming the file at fault, for a run that is unfinished, limited, labelled, of another version of
    vlbench, its task or methods, inconsistent, too large, or that contradicts a result already there.
    """
    public = verified(run)
    text = json.dumps(public.model_dump(mode="json"), indent=1, allow_nan=False) + "\n"
    if len(text.encode()) > LARGEST:
        size = f"{len(text.encode()):,} bytes, more than {LARGEST:,}"
        raise UserError(f"the result of {run} is too large to commit ({size}): shorten its per-sample scores.")
    path = results / file_name(public.suite) / f"{file_name(public.cell)}.json"
    if path.is_file() and not agree(read_record(path), public):
        raise UserError(f"{path} says something else about this cell: delete it if yours shall replace it.")
    write_text(path, text)
    return path


def submit_all(runs: Path, folder: Path) -> Iterator[tuple[str, bool]]:
    """Every finished run of `runs` into `folder`, laid out like leaderboards/results. Yields a line a run, and whether
    it is as it should be: written, or of a kind that no leaderboard takes."""
    files = sorted(file for file in runs.glob("*/result.json") if not file.parent.is_symlink())
    if not files:
        raise UserError(f"there are no finished runs in {runs}: name their folder with --runs.")
    for file in files:
        run = file.parent
        try:
            reason = unranked(read_record(file))
            yield (f"left out {run}: {reason}.", True) if reason else (f"wrote {submit(run, folder)}", True)
        except UserError as error:
            yield f"refused: {error}", False


def submit_each(runs: Sequence[Path], folder: Path) -> Iterator[tuple[str, bool]]:
    """The runs named into `folder`. Yields a line a run, and whether it was written: one that is refused does not keep
    the others out."""
    for run in runs:
        try:
            yield f"wrote {submit(run, folder)}", True
        except UserError as error:
            yield f"refused: {error}", False


def unranked(record: Record) -> str:
    """Why no leaderboard takes the record; empty where one does."""
    flags = {*record.flags, *(["label"] if record.label else [])}
    reasons = [reason for flag, reason in REFUSED.items() if flag in flags]
    return ", ".join([*reasons, *([] if record.complete else ["some of its samples failed"])])


def verified(run: Path) -> Record:
    """The run's record, fit for the world: everything in it that can be made again was, and agrees."""
    file = run / "result.json"
    if not file.is_file():
        raise UserError(f"{run} is not finished (it has no result.json): run the same command again.")
    record = read_record(file)
    if reason := unranked(record):
        raise UserError(f"{run} cannot be submitted: {reason}.")
    verify_name(run, record)
    mine = open_again(run, record)
    cell = dense_cell(record) if mine is None else mine.dense()
    verify_origin(file, record, cell)
    if mine is not None:
        verify_chain(file, record, mine)
    verify_data(cell)
    lines, scores = _verify_scores(run, record, cell)
    clusters = [sample.cluster for sample in cell.samples]
    _verify_metrics(run, record, cell, scores, clusters)
    dense = record.interval if record.cell == cell.id else _dense_interval(run, cell)
    verify_flags(file, record, cell, dense)
    saved = _verify_model(run, record, cell, lines)
    additions = {"sample_clusters": pack_clusters(clusters), "model_digest": saved}
    return record.model_copy(update={**additions, "provenance": _without_host(record.provenance)})


def _verify_scores(run: Path, record: Record, cell: Cell) -> tuple[list[Line], list[Score]]:
    """The predictions, and what the task says of them, sample by sample."""
    file = run / "predictions.jsonl"
    if not file.is_file():
        raise UserError(f"{file} is missing: a run is submitted with its predictions. Run it again.")
    lines = read_predictions(file, [sample.id for sample in cell.samples])
    for number, line in enumerate(lines, start=1):
        if line["status"] != "ok":
            raise UserError(f"{file}, line {number}: {line['id']} is {line['status']}. Run the same command again.")
    scores = _rescored(file, cell, lines)
    for number, (line, score) in enumerate(zip(lines, scores, strict=True), start=1):
        if not _near(line.get("score"), score):
            _inconsistent(f"{file}, line {number}", f"its score is {line.get('score')!r}, its prediction's {score!r}")
    if pack_scores(scores) != record.scores:
        _inconsistent(str(run / "result.json"), f"its scores are not those of {file.name}")
    return lines, scores


def _rescored(file: Path, cell: Cell, lines: Sequence[Line]) -> list[Score]:
    try:
        return cell.task.scores(cell.samples, [line["prediction"] for line in lines])
    except (UserError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} has predictions that task={cell.spec.task.name} cannot score ({error!r}).") from None


def _near(recorded: Any, counted: Any) -> bool:
    """Numbers, or lists of numbers, that agree but for rounding."""
    try:
        a, b = (np.asarray(value, dtype=np.float64) for value in (recorded, counted))
    except (TypeError, ValueError):
        return False
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE))


def _verify_metrics(run: Path, record: Record, cell: Cell, scores: Sequence[Score], clusters: Sequence[str]) -> None:
    """Metrics, their interval and the difference to the dense model follow from the scores."""
    from ..run.outcome import difference_of, interval_of

    task, file = cell.task, str(run / "result.json")
    metrics: dict[str, Any] = {**task.aggregate(cell.samples, scores)}
    if record.metric != task.metric or record.metric not in record.metrics:
        _inconsistent(file, f"its primary metric is not {task.metric}")
    # A metric that only one of the two machines can measure (it needs Java) cannot be compared.
    wanted = {k: v for k, v in metrics.items() if k in record.metrics or k not in record.unmeasured}
    stated = {k: v for k, v in record.metrics.items() if k in metrics or k not in task.unmeasured()}
    _compare(file, "metrics", stated, wanted)
    _compare(file, "interval", record.interval.model_dump(), interval_of(task, scores, clusters).model_dump())
    dense = None if record.cell == cell.id else _dense_scores(run, cell)
    versus = None if dense is None else difference_of(task, scores, dense, clusters).model_dump()
    _compare(file, "vs_dense", record.vs_dense.model_dump() if record.vs_dense else None, versus)
    counts = {"samples": len(cell.samples), "clusters": record.interval.clusters}
    _compare(file, "counts", {"samples": record.samples, "clusters": record.clusters}, counts)


def _dense_scores(run: Path, cell: Cell) -> NDArray[np.float64]:
    """(samples, statistics) of the dense run beside this one."""
    file = run.parent / cell.id / "predictions.jsonl"
    if not file.is_file():
        raise UserError(f"{file} is missing: the dense run that {run} is compared with. Run the same command again.")
    read = cell.id, file.resolve(), file.stat().st_mtime_ns
    if read not in _DENSE:
        lines = read_predictions(file, [sample.id for sample in cell.samples])
        scores = _rescored(file, cell, lines)
        verify_predictions(file, cell, open_model(cell)[0], lines, "", _made_with(file))
        rows = [score if isinstance(score, list) else [score] for score in scores]
        _DENSE[read] = np.array(rows, dtype=np.float64)
    return _DENSE[read]


def _dense_interval(run: Path, cell: Cell) -> Interval:
    """Of the dense run beside this one, on its own."""
    from ..run.outcome import interval_of

    scores = _dense_scores(run, cell)
    return interval_of(cell.task, [list(row) for row in scores], [sample.cluster for sample in cell.samples])


def _made_with(predictions: Path) -> Mapping[str, Any]:
    """The provenance of the run whose predictions these are; nothing where it has no record (any more)."""
    file = predictions.with_name("result.json")
    return read_record(file).provenance if file.is_file() else {}


def _verify_model(run: Path, record: Record, cell: Cell, lines: Sequence[Line]) -> str:
    """Parameters, MACs, pattern and budget are those of the saved weights, and so are the predictions; returns the
    digest of their manifest."""
    from ..compression.saved import load_model, manifest_digest
    from ..compression.state import Compression
    from ..cost.counts import count_parameters, macs_of

    original, _ = open_model(cell)
    structure, size = original.structure(), sum(p.numel() for p in original.net.parameters())
    dense_macs = macs_of(original, cell.task)
    folder, saved, model, state = run / "model", "", original, Compression()
    if record.cell != cell.id:
        model, state = load_model(folder)
        saved = manifest_digest(folder)
        if record.model_digest and record.model_digest != saved:
            _inconsistent(str(folder), "it is not the model that was evaluated")
    counted = count_parameters(model, dense=size, prunable=structure.size, towers=structure.tower_sizes())
    here = {
        "parameters": counted, "macs": macs_of(model, cell.task), "macs_dense": dense_macs, "budget": state.budget,
        "pattern": state.pattern, "trained": state.trained, "n_tuned": state.n_tuned,
    }  # fmt: skip
    for name, value in here.items():
        if getattr(record, name) != value:
            difference = f"its {name} are {getattr(record, name)}, those of {folder} {value}"
            _inconsistent(str(run / "result.json"), difference)
    verify_predictions(run / "predictions.jsonl", cell, model, lines, saved, record.provenance)
    return saved


def _compare(where: str, what: str, recorded: Mapping[str, Any] | None, counted: Mapping[str, Any] | None) -> None:
    if recorded is None or counted is None:
        if (recorded is None) is not (counted is None):
            _inconsistent(where, f"its {what} should be {counted}, it says {recorded}")
        return
    for name in sorted({*recorded, *counted}):
        if name not in recorded or name not in counted or not _near(recorded[name], counted[name]):
            _inconsistent(
                where, f"{what}: {name} is {counted.get(name)!r} by the predictions, it says {recorded.get(name)!r}"
            )


def _inconsistent(where: str, why: str) -> None:
    raise inconsistent(where, why)


def _without_host(value: Any) -> Any:
    """Provenance without what names a machine, a person or a place on a disk."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if not OF_THE_HOST.search(k) and not _is_place(v)}
        return {key: _without_host(v) for key, v in kept.items()}
    if isinstance(value, list):
        return [_without_host(v) for v in value if not _is_place(v)]
    return value


def _is_place(value: Any) -> bool:
    return isinstance(value, str) and ABSOLUTE.search(value) is not None
