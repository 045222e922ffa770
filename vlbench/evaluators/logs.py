"""Per-sample logs of other harnesses: lmms-eval's JSON lines (--log_samples), VLMEvalKit's tables of results.

lmms-eval: DATE_samples_TASK.jsonl. A sample is its doc_id (doc_hash shows where that is another document); its scores
are all other keys that hold a number, true or false, or an object with a `score`.
VLMEvalKit: a table of results in .xlsx, .csv, .tsv or .json. A sample is its index; its score is `hit`, or another
column.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..records.statistics import Array

# Of a line of lmms-eval: what is no score.
NO_SCORES = frozenset(
    ("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "token_counts", "doc_hash", "input_media")
)
USUAL = ("hit", "score")  # columns of VLMEvalKit that its own totals are made of


@dataclass(frozen=True)
class Log:
    """scores: (n,) of the metric, in the order of ids. digests: of the documents, empty where the log has none.
    clusters: of each sample, itself where no field was named."""

    file: Path
    metric: str
    ids: tuple[str, ...]
    scores: Array
    clusters: tuple[str, ...]
    digests: tuple[str, ...] = ()


def read_log(file: Path, metric: str = "", cluster: str = "") -> Log:
    """metric: a key or column; empty: the only one there is. cluster: a field of the documents (or a column) that
    samples have in common, like an image's name. Raises UserError for a file that is no log, samples that occur twice
    or have no finite score, and where the metric or the field must be named."""
    rows = _lines(file) if file.suffix == ".jsonl" else _table(file)
    if not rows:
        raise UserError(f"{file} holds no sample.")
    name = "doc_id" if "doc_id" in rows[0] else "index"
    if any(name not in row for row in rows):
        raise UserError(f"{file} is no log of lmms-eval (doc_id) or VLMEvalKit (index): some rows have no {name}.")
    ids = tuple(str(row[name]) for row in rows)
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise UserError(f"{file} has sample {twice} twice (several filters or runs in one file): keep one of them.")
    chosen = _metric(file, rows, metric, name)
    scores = np.array([_number(row.get(chosen), file, i, chosen) for i, row in zip(ids, rows, strict=True)])
    clusters = tuple(_field(row, cluster, file) for row in rows) if cluster else ids
    digests = tuple(str(row["doc_hash"]) for row in rows) if all("doc_hash" in row for row in rows) else ()
    return Log(file, chosen, ids, scores, clusters, digests)


def in_order_of(log: Log, first: Log) -> Log:
    """The log with its samples in the order of another's. Raises UserError where they are not the same ones."""
    mine, its = set(log.ids), set(first.ids)
    if mine != its:
        odd = sorted(mine ^ its)
        raise UserError(
            f"{log.file} and {first.file} are not of the same samples: {len(its - mine)} lack in the one and "
            f"{len(mine - its)} in the other (the first: {', '.join(odd[:5])})."
        )
    place = {name: number for number, name in enumerate(log.ids)}
    order = [place[name] for name in first.ids]
    digests = tuple(log.digests[i] for i in order) if log.digests else ()
    other = [name for name, a, b in zip(first.ids, digests, first.digests, strict=False) if a != b]
    if other:
        raise UserError(f"{log.file} has other documents than {first.file} under {len(other)} names ({other[0]} ...).")
    return Log(log.file, log.metric, first.ids, log.scores[order], first.clusters, digests)


def _lines(file: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise UserError(f"{file} does not exist.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is no file of JSON lines: {error}.") from None
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{file} is no log of lmms-eval: a line of it is no object.")
    return rows


def _table(file: Path) -> list[dict[str, Any]]:
    import pandas

    readers: dict[str, Callable[[Path], Any]] = {
        ".xlsx": pandas.read_excel, ".csv": pandas.read_csv, ".json": pandas.read_json,
        ".tsv": lambda path: pandas.read_csv(path, sep="\t"),
    }  # fmt: skip
    if file.suffix not in readers:
        raise UserError(f"{file} should be lmms-eval's .jsonl, or VLMEvalKit's .xlsx, .csv, .tsv or .json.")
    try:
        frame = readers[file.suffix](file)
    except FileNotFoundError:
        raise UserError(f"{file} does not exist.") from None
    except ImportError:
        raise UserError("reading .xlsx needs openpyxl: pip install openpyxl, or save the table as .csv.") from None
    except Exception as error:  # readers of tables raise what they come across
        raise UserError(f"{file} is no table: {' '.join(str(error).split())[:200]}.") from None
    rows: list[dict[str, Any]] = frame.to_dict("records")
    return rows


def _metric(file: Path, rows: Sequence[Mapping[str, Any]], metric: str, name: str) -> str:
    """The key that holds the scores."""
    there = list(dict.fromkeys(key for key in _scored(rows[0]) if key != name))
    if metric:
        if metric not in there:
            raise UserError(f"{file} has no score {metric!r}; it has {', '.join(there) or 'none'}.")
        return metric
    if usual := [key for key in USUAL if key in there and name == "index"]:
        return usual[0]
    if len(there) != 1:
        raise UserError(f"{file} has the scores {', '.join(there) or 'none'}: name one with --metric.")
    return there[0]


def _scored(row: Mapping[str, Any]) -> Iterator[str]:
    for key, value in row.items():
        inner = value.get("score") if isinstance(value, dict) else value
        if key not in NO_SCORES and isinstance(inner, bool | int | float | np.integer | np.floating | np.bool_):
            yield key


def _number(value: Any, file: Path, sample: str, metric: str) -> float:
    inner: Any = value.get("score") if isinstance(value, dict) else value
    try:
        number = float(inner)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{file}: sample {sample} has no finite {metric} ({str(inner)[:60]}): correct the log.")
    return number


def _field(row: Mapping[str, Any], field: str, file: Path) -> str:
    document = row.get("doc")
    value = row.get(field, document.get(field) if isinstance(document, dict) else None)
    if value is None or isinstance(value, dict | list):
        raise UserError(f"{file}: a sample has no field {field!r} that names its cluster.")
    return str(value)
