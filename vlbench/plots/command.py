"""`vlbench plot`: which pictures the runs or the board that were named allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from ..errors import UserError
from ..leaderboard.rows import Row, rows
from ..leaderboard.select import FILTERS, selected
from ..spec import parse
from . import kept
from .canvas import drawing
from .components import draw_components, draw_layers
from .runs import Run, open_run, series
from .tradeoff import draw_tradeoff
from .trajectory import SHOWN, draw_trajectories, searches


def plot(words: Sequence[str], find: Callable[[str], Path], runs: Path, out: Path) -> tuple[list[Path], list[str]]:
    """Draw into `out` what the words allow; returns the files, and a sentence for each picture that was left out.

    words: runs (find: name -> folder), or words like task= of boards, which take in the finished runs of the folder
    `runs`. Raises UserError where there is nothing to draw.
    """
    with drawing():
        if all("=" in word and not find(word).exists() for word in words):
            return _board(parse(words), runs, out)
        return _runs([open_run(find(word)) for word in words], out)


def _board(given: dict[str, str], runs: Path, out: Path) -> tuple[list[Path], list[str]]:
    if unknown := sorted(set(given) - set(FILTERS)):
        raise UserError(f"vlbench plot takes runs, or words of a board ({', '.join(FILTERS)}), not {unknown[0]}=.")
    found, _ = selected({"suite": "mini", **given}, runs)
    return _tradeoffs([row for row, _ in found], out), []


def _tradeoffs(found: Sequence[Row], out: Path) -> list[Path]:
    """A picture a block."""
    blocks = [list(group) for _, group in groupby(found, key=lambda row: row.block)]
    names = ["-".join((block[0].suite, block[0].task, block[0].label or block[0].model)) for block in blocks]
    marks = [
        f"-{block[0].evaluation[:6]}" if names.count(n) > 1 else "" for n, block in zip(names, blocks, strict=True)
    ]
    return [p for b, n, mark in zip(blocks, names, marks, strict=True) for p in draw_tradeoff(b, out, n + mark)]


def _runs(runs: Sequence[Run], out: Path) -> tuple[list[Path], list[str]]:
    files, left = [], []
    for one in series(runs):
        ours = kept.measured(one)
        if not ours.targets:
            left.append(f"{one.title}: no picture of what is kept, since none of its runs made a compressed model.")
            continue
        if all(run.record.pattern == "dense" for run in one.runs):
            left.append(f"{one.title}: no picture of what is kept, since nothing was pruned.")
            continue
        panels = [ours, *kept.published(one.runs[0].record.task)]
        files += [*draw_components(panels, out, one.name), *draw_layers(panels, out, one.name)]
    for names, group in groupby(sorted(searches(runs), key=_place), key=_place):
        members = list(group)
        files += draw_trajectories(members[:SHOWN], out, "-".join(names))
        left += [f"{run.folder}: not in the picture of searches, which shows {SHOWN}." for run in members[SHOWN:]]
    if not searches(runs):
        left.append("no picture of a search: none of these runs searched with gates.")
    limited = [run for run in runs if "limit" in run.record.flags or not run.record.complete]
    left += [f"{run.folder}: not in the picture of costs, since it was not evaluated whole." for run in limited]
    files += _tradeoffs(rows(run.record for run in runs), out)
    return files, left


def _place(run: Run) -> tuple[str, str, str]:
    return (run.record.suite, run.record.task, run.record.label or run.record.model)
