"""result.json: what one finished cell says. The same file, copied, is a leaderboard's source."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..disk import checksums
from ..disk.storage import read_json, refuse_link, write_json
from ..errors import UserError

SCHEMA_VERSION = 2
# Version -> what makes a record of that version one of the next. An identity is never touched: it is what was hashed.
# 1 -> 2: sample_clusters and model_digest came; in a record of version 1 they are empty.
MIGRATIONS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: lambda data: data}


# A cell is an id, which becomes a file's and a folder's name: no path leads out of it.
NAME, LONGEST = r"^\w[\w.+-]*$", 250


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Link(_Part):
    """One link of the method chain, with every option. version: the built-in's number or the source's digest."""

    name: str
    version: str
    options: dict[str, Any]


class Interval(_Part):
    """A 95 % confidence interval of the primary metric, in its own units (percent points)."""

    value: float
    low: float
    high: float
    se: float
    clusters: int


class VersusDense(_Part):
    """Paired difference to the dense model on the same samples. p: two-sided, H0: no difference."""

    delta: float
    low: float
    high: float
    p: float
    samples: int
    clusters: int


class Parameters(_Part):
    """Counts of the compressed model; `dense` of the model it was made from. prunable: entries in the prunable set
    before pruning; removed: how many of them are gone or zero."""

    dense: int = Field(gt=0)
    total: int
    nonzero: int
    prunable: int
    removed: int
    towers: dict[str, float]  # tower -> fraction of its share of the prunable set that is removed


class Budget(_Part):
    """What training the chain took: optimiser steps and samples seen over all links."""

    steps: int = 0
    samples_seen: int = 0


class Record(_Part):
    """One cell. `scores` is the per-sample score vector (pack_scores), in the split's order, and `sample_clusters` the
    cluster of each (pack_clusters; empty where every sample is its own, and in records of schema 1). model_digest: of
    the saved model's manifest, which has the digests of its files; empty for the dense model."""

    schema_version: Literal[2] = 2
    cell: str = Field(pattern=NAME, max_length=LONGEST)
    suite: str
    task: str
    task_version: int
    split: str
    split_digest: str
    samples: int
    clusters: int
    model: str
    label: str = ""
    weights_digest: str
    method: str
    recipe: str
    chain: list[Link]
    pattern: str
    trained: bool
    seed: int | None
    sparsity_target: str
    evaluation: dict[str, Any]
    parameters: Parameters
    macs: int | None
    macs_dense: int | None
    budget: Budget
    n_tuned: int = Field(1, exclude_if=lambda count: count == 1)  # settings that were chosen between on select
    metric: str
    metrics: dict[str, float]
    unmeasured: dict[str, str] = {}  # metric -> why it has no value (a program that the machine lacks)
    interval: Interval
    vs_dense: VersusDense | None
    complete: bool
    flags: list[str]
    identity: dict[str, Any]
    provenance: dict[str, Any]
    phases: dict[str, float]
    scores: str
    sample_clusters: str = ""
    model_digest: str = ""

    @property
    def sparsity(self) -> float:
        """Realised fraction of the prunable set that is removed."""
        return self.parameters.removed / self.parameters.prunable if self.parameters.prunable else 0.0

    def configuration(self) -> dict[str, Any]:
        """What makes two records the same row but for their seed."""
        return {
            "suite": self.suite,
            "task": [self.task, self.task_version, self.split, self.split_digest],
            "model": [self.model, self.label, self.weights_digest],
            "chain": [link.model_dump() for link in self.chain],
            "evaluation": self.evaluation,
        }


def write_record(path: Path, record: Record) -> None:
    """Write result.json whole or not at all."""
    write_json(path, record.model_dump(mode="json"))


def read_record(path: Path) -> Record:
    """Read a result file. Raises UserError that names the file where it is damaged, foreign or of another schema."""
    data = _migrated(path, read_json(path))
    try:
        # A board is strict JSON in UTF-8: infinite numbers, and halves of characters ("\\ud800"), have no place in it.
        json.dumps(data, allow_nan=False, ensure_ascii=False).encode("utf-8")
        return Record.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path} is damaged ({where}: {first['msg']}): delete it and run again.") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): delete it and run again.") from error


def _migrated(path: Path, data: Any) -> dict[str, Any]:
    """The data of a result file as this version's schema has them."""
    version = data.get("schema_version") if isinstance(data, dict) else None
    if type(version) is not int or version < min(MIGRATIONS):
        raise UserError(f"{path} is no vlbench result: delete the file, or move it elsewhere.")
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{path} is of schema {version}, this vlbench reads up to {SCHEMA_VERSION}: update vlbench, "
            "or delete the file."
        )
    for step in range(version, SCHEMA_VERSION):
        data = {**MIGRATIONS[step](data), "schema_version": step + 1}
    return dict(data)


FEW = 4  # columns up to which whole rows are told apart: an accuracy has few distinct ones


def pack_scores(scores: Sequence[float | Sequence[float]]) -> str:
    """Per-sample scores -> short text, deflated. Up to FEW numbers a sample: the distinct rows, rounded to 1e-6, and
    each sample's row number (4,000 VQA scores take about 1 KB). More (the statistics of a corpus metric): column by
    column, whole numbers as int32 and others as float32, since columns are alike and rows are not."""
    table = np.atleast_2d(np.asarray(scores, dtype=np.float64).round(6))
    table = table.T if np.ndim(scores[0] if len(scores) else 0.0) == 0 else table
    packed = _pack_rows(table) if table.shape[1] <= FEW else _pack_columns(table)
    return base64.b85encode(zlib.compress(packed, 9)).decode("ascii")


def _pack_rows(table: NDArray[np.float64]) -> bytes:
    rows, index = np.unique(table, axis=0, return_inverse=True)
    width = 1 if len(rows) < 256 else 4
    head = np.array([rows.shape[0], rows.shape[1], width], dtype="<u4").tobytes()
    parts: list[bytes] = [head, rows.astype("<f8").tobytes(), index.reshape(-1).astype(f"<u{width}").tobytes()]
    return b"".join(parts)


def _pack_columns(table: NDArray[np.float64]) -> bytes:
    whole = (table == table.round()).all(axis=0) & (np.abs(table).max(axis=0, initial=0) < 2**31)
    columns: list[bytes] = [c.astype("<i4" if w else "<f4").tobytes() for c, w in zip(table.T, whole, strict=True)]
    return b"".join([np.array([*table.shape, 0], dtype="<u4").tobytes(), whole.tobytes(), *columns])


def unpack_scores(text: str) -> NDArray[np.float64]:
    """The (samples, statistics) array that pack_scores was given. Raises UserError for damaged text."""
    try:
        data = zlib.decompress(base64.b85decode(text))
        count, columns, width = (int(x) for x in np.frombuffer(data[:12], dtype="<u4"))
        if not width:
            return _unpack_columns(data[12:], count, columns)
        end = 12 + count * columns * 8
        rows = np.frombuffer(data[12:end], dtype="<f8").reshape(count, columns)
        values: NDArray[np.float64] = rows[np.frombuffer(data[end:], dtype=f"<u{width}")]
    except (ValueError, zlib.error, IndexError, TypeError) as error:
        raise UserError(f"a packed score vector is damaged ({error}).") from error
    return values


def _unpack_columns(data: bytes, count: int, columns: int) -> NDArray[np.float64]:
    whole, body = np.frombuffer(data[:columns], dtype=bool), data[columns:]
    if len(whole) != columns or len(body) != 4 * count * columns:
        raise ValueError("its length is not what its head says")
    parts = [body[i * 4 * count : (i + 1) * 4 * count] for i in range(columns)]
    return np.stack(
        [np.frombuffer(p, dtype="<i4" if w else "<f4") for p, w in zip(parts, whole, strict=True)], axis=1
    ).astype(np.float64)


def cluster_numbers(clusters: Sequence[str]) -> NDArray[np.intp]:
    """Cluster numbers 0..G-1: samples without a label first, in order, then the labels in sorted order."""
    alone = np.fromiter((not c for c in clusters), dtype=bool, count=len(clusters))
    number = np.cumsum(alone) - 1
    if not alone.all():
        labels = [c for c in clusters if c]
        number[~alone] = np.unique(labels, return_inverse=True)[1].reshape(-1) + alone.sum()
    return number


def pack_clusters(clusters: Sequence[str]) -> str:
    """Cluster numbers -> short text: their differences, which repeat where samples of a cluster follow one another,
    deflated (214,000 questions of VQAv2 val take 46 KB). Empty where every sample is its own cluster."""
    if len(set(filter(None, clusters))) + sum(not c for c in clusters) == len(clusters):
        return ""
    steps = np.diff(cluster_numbers(clusters), prepend=0).astype("<i4")
    return base64.b85encode(zlib.compress(steps.tobytes(), 9)).decode("ascii")


@lru_cache(maxsize=256)
def unpack_cluster_numbers(text: str) -> NDArray[np.intp]:
    """The cluster number of each sample; the results of one split share a text, which is unpacked once. Raises
    UserError for damaged text."""
    try:
        steps = np.frombuffer(zlib.decompress(base64.b85decode(text)), dtype="<i4")
    except (ValueError, zlib.error) as error:
        raise UserError(f"packed clusters are damaged ({error}).") from error
    numbers = np.cumsum(steps, dtype=np.intp)
    if not len(numbers) or numbers.min() < 0 or numbers.max() >= len(numbers):
        raise UserError("packed clusters are damaged (a number is not one of theirs).")
    numbers.flags.writeable = False
    return numbers


def unpack_clusters(text: str) -> list[str]:
    """Labels of the packed clusters, which sort as their numbers do. Raises UserError for damaged text."""
    return [f"{number:09d}" for number in unpack_cluster_numbers(text)]


def read_local(folder: Path) -> Record:
    """The record of a cell that was finished on this machine. Raises UserError where it is damaged, or is not what the
    run has noted that it wrote (`disk.checksums`)."""
    checksums.check(folder, "result.json")
    return read_record(folder / "result.json")


def intact(folder: Path) -> Record | None:
    """`finished`, of a folder that is no link to another and holds the result that was written there. Raises UserError
    where it does not."""
    refuse_link(folder)
    if (folder / "result.json").is_file():
        checksums.check(folder, "result.json")
    return finished(folder)


def finished(folder: Path) -> Record | None:
    """The record of a finished cell, or None. Raises UserError where it is damaged."""
    return read_local(folder) if (folder / "result.json").is_file() else None
