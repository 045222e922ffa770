"""leaderboards/results -> the boards beside it, byte for byte, and a finished run -> leaderboards/results.

No model runs here, and no clock, locale, hash seed or file order shows in a board.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, TypeGuard

from ..errors import UserError
from ..evaluation.predictions import read_predictions
from ..record import Record, pack_scores, read_record
from ..storage import write_text
from ..task import Score
from .rows import COLUMNS, load_results, numbers, rows
from .tables import GENERATED, csv_text, markdown

# Bytes of a committed result: thousands of them must stay light in a repository. An accuracy takes 3 KB; the statistics
# of a corpus metric more (2,000 images of ADE20K about 120 KB).
LARGEST = 200_000
REFUSED = {"limit": "only some of its samples were evaluated", "label": "its weights are the submitter's own"}
TOLERANCE = 1e-9  # percent points between a metric and the mean of its per-sample scores
PATH_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
# What provenance must not tell the world: whose machine it was, and where things lay on its disk.
OF_THE_HOST = re.compile(r"host|user|home|cwd", re.IGNORECASE)
ABSOLUTE = re.compile(r"""(?:^|[\s=,;'"(]|:(?!//))(?:~?/[^\s/]|[A-Za-z]:[\\/]|\\\\|file:)""")


def boards(results_root: Path) -> dict[Path, str]:
    """<suite>/<task>.csv and .md, relative to the leaderboards' folder -> text; one board a suite and
    task."""
    texts: dict[Path, str] = {}
    for (suite, task), group in groupby(rows(load_results(results_root)), key=lambda row: (row.suite, row.task)):
        members = list(group)
        board = Path(_file_name(suite)) / _file_name(task)
        texts[board.with_name(f"{board.name}.csv")] = csv_text(members)
        texts[board.with_name(f"{board.name}.md")] = markdown(members)
    return texts


def write(results_root: Path, out_root: Path) -> list[Path]:
    """Write all boards under `out_root`, remove generated ones that have no results left; return what
    changed."""
    texts = boards(results_root)
    changed = [name for name, text in texts.items() if _bytes(out_root / name) != text.encode()]
    for name in changed:
        write_text(out_root / name, texts[name])
    strays = list(_strays(out_root, texts))
    for name in strays:
        (out_root / name).unlink()
    return sorted([*changed, *strays])


def check(results_root: Path, out_root: Path) -> list[str]:
    """What `write` would change, as lines of a unified diff; empty where every byte is as it should be."""
    texts = boards(results_root)
    lines: list[str] = []
    for name, text in texts.items():
        found = _bytes(out_root / name)
        if found is None:
            lines.append(f"{name.as_posix()} is missing")
        elif found != text.encode():
            lines += _difference(name.as_posix(), found.decode("utf-8", errors="replace"), text)
    return [*lines, *(f"{name.as_posix()} has no results" for name in _strays(out_root, texts))]


def _difference(name: str, found: str, wanted: str) -> list[str]:
    old, new = (text.replace("\r", "\\r").split("\n") for text in (found, wanted))  # so that a "\r" shows
    return list(difflib.unified_diff(old, new, f"{name} (found)", f"{name} (from results)", n=0, lineterm=""))


def _strays(out_root: Path, texts: Mapping[Path, str]) -> Iterator[Path]:
    """Boards without results. Only files that begin as a board does: a page written by hand is none."""
    for path in sorted([*out_root.glob("*/*.csv"), *out_root.glob("*/*.md")]):
        name, head = path.relative_to(out_root), path.read_bytes()[:400].decode("utf-8", errors="replace")
        if name not in texts and (head.startswith(",".join(COLUMNS)) or GENERATED in head):
            yield name


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _file_name(name: str) -> str:
    """A contributed file says which suite and task it is of: it must not reach outside the boards' folder."""
    if not PATH_NAME.fullmatch(name):
        raise UserError(f"{name!r} cannot be part of a file name: letters, digits and ._+- only. Mend the result.")
    return name


def submit(
    run_folder: Path,
    results_root: Path,
    aggregate: Callable[[Sequence[Score]], Mapping[str, float]] | None = None,
) -> Path:
    """Verify a finished run and copy its record to results/<suite>/<cell>.json; returns that path.

    The metrics are recomputed from predictions.jsonl (in the split's order): by `aggregate` (scores -> metric
    -> value) where given, else the mean of a per-sample score, x 100. Statistics of a corpus metric without
    `aggregate` are only compared with the record's. Raises UserError for a run that is unfinished, limited,
    labelled, inconsistent, too large, or that contradicts a result already there.
    """
    file = run_folder / "result.json"
    if not file.is_file():
        raise UserError(f"{run_folder} is not finished (it has no result.json): run the same command again.")
    record = read_record(file)
    _refuse_unranked(run_folder, record)
    _verify(run_folder, record, aggregate)
    public = record.model_copy(update={"provenance": _without_host(record.provenance)})
    text = json.dumps(public.model_dump(mode="json"), indent=1, allow_nan=False) + "\n"
    if len(text.encode()) > LARGEST:
        size = f"{len(text.encode()):,} bytes, more than {LARGEST:,}"
        raise UserError(f"the result of {run_folder} is too large to commit ({size}): shorten its per-sample scores.")
    path = results_root / _file_name(record.suite) / f"{_file_name(record.cell)}.json"
    if path.is_file() and numbers(read_record(path)) != numbers(public):
        raise UserError(f"{path} says something else about this cell: delete it if yours shall replace it.")
    write_text(path, text)
    return path


def _refuse_unranked(run_folder: Path, record: Record) -> None:
    flags = {*record.flags, *(["label"] if record.label else [])}
    reasons = [reason for flag, reason in REFUSED.items() if flag in flags]
    if not record.complete:
        reasons.append("some of its samples failed")
    if reasons:
        raise UserError(f"{run_folder} cannot be submitted: {', '.join(reasons)}.")


def _verify(
    run_folder: Path, record: Record, aggregate: Callable[[Sequence[Score]], Mapping[str, float]] | None
) -> None:
    """result.json follows from predictions.jsonl, or UserError says where it does not."""
    scores = _scores(run_folder / "predictions.jsonl")
    if len(scores) != record.samples:
        _inconsistent(run_folder, f"{len(scores)} predictions, {record.samples} samples")
    if pack_scores(scores) != record.scores:
        _inconsistent(run_folder, "the scores in predictions.jsonl are not the record's")
    told = {**record.metrics, "interval": record.interval.value}
    wanted: dict[str, float] = {}
    if aggregate is not None:
        wanted = {**aggregate(scores)}
    elif not isinstance(scores[0], list) or len(scores[0]) == 1:
        first = [score[0] if isinstance(score, list) else score for score in scores]
        wanted = {record.metric: 100 * sum(first) / len(first)}
    if record.metric not in record.metrics:
        _inconsistent(run_folder, f"metrics lack the primary one, {record.metric}")
    wanted["interval"] = wanted.get(record.metric, record.metrics[record.metric])
    for name, value in wanted.items():
        if name not in told or not abs(told[name] - value) <= TOLERANCE:
            _inconsistent(run_folder, f"{name} is {value!r} by the predictions, {told.get(name)!r} in the record")


def _inconsistent(run_folder: Path, why: str) -> None:
    raise UserError(f"{run_folder} is inconsistent ({why}): delete it and run again.")


def _scores(path: Path) -> list[Score]:
    """The score of each line, in order; every id once, every status "ok"."""
    if not path.is_file():
        raise UserError(f"{path} is missing: a run is submitted with its predictions. Run it again.")
    scores: dict[str, Score] = {}
    for number, line in enumerate(read_predictions(path), start=1):
        sample, score, status = line["id"], line.get("score"), line["status"]
        if status != "ok" or sample in scores or not _is_score(score):
            why = f"a second prediction for {sample}" if sample in scores else f"{sample}: {status}, {score!r}"
            raise UserError(f"{path}, line {number}: {why}. Run the same command again.")
        scores[sample] = score
    if not scores:
        raise UserError(f"{path} is empty: delete the run and run again.")
    return list(scores.values())


def _is_score(value: object) -> TypeGuard[Score]:
    numbers = value if isinstance(value, list) and value else [value]
    return all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)


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


def boards_folder() -> Path:
    """The leaderboards that ship with this installation (in a checkout: leaderboards/)."""
    spec = importlib.util.find_spec("vlbench.leaderboards")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("this installation lacks vlbench.leaderboards: reinstall vlbench.")
    return Path(next(iter(spec.submodule_search_locations)))
