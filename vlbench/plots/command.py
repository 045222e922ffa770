"""`vlbench plot`: which pictures the runs or the board that were named allow."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import groupby
from pathlib import Path

from ..cell.words import parse
from ..errors import UserError
from ..leaderboard.filters import FILTERS, Found, absent, selected
from ..leaderboard.rows import rows_of
from . import kept
from .canvas import drawing
from .components import draw_components, draw_layers
from .distribution import draw_distribution
from .restoration import comparison, draw_restoration
from .runs import Run, open_run, series
from .spread import blind_of, grids
from .tradeoff import draw_tradeoff
from .trajectory import SHOWN, draw_trajectories, searches


def plot(
    words: Sequence[str],
    find: Callable[[str], Path],
    runs: Path,
    out: Path,
    cells: Collection[str] | None = None,
) -> tuple[list[Path], list[str]]:
    """Draw into `out` what the words allow; returns the files, and a sentence for each picture that was left out.

    words: runs (find: name -> folder), or words like task= of boards, which take in the finished runs of the folder
    `runs`. cells: of a sweep, whose rows alone are drawn then. Raises UserError where there is nothing to draw.
    """
    with drawing():
        if cells is not None or all("=" in word and not find(word).exists() for word in words):
            return _board(parse(words), runs, out, cells)
        return _runs([open_run(find(word)) for word in words], out)


def _board(given: dict[str, str], runs: Path, out: Path, cells: Collection[str] | None) -> tuple[list[Path], list[str]]:
    if unknown := sorted(set(given) - set(FILTERS)):
        raise UserError(f"vlbench plot takes runs, or words of a board ({', '.join(FILTERS)}), not {unknown[0]}=.")
    rows, _ = selected(given if cells is not None else {"suite": "mini", **given}, runs, cells)
    return _pictures(rows, out), absent(cells, rows)


def _pictures(rows: Sequence[Found], out: Path) -> list[Path]:
    """Of every block: costs, and where its rows allow it how sparsity is spread and what restores it. A block of the
    dense model alone (without images, say) has no picture of its own."""
    blocks = [list(group) for _, group in groupby(rows, key=lambda pair: pair[0].block)]
    shown = [block for block in blocks if len(blocks) == 1 or not all(row.dense for row, _ in block)]
    names = ["-".join((row.suite, row.task, row.label or row.model)) for row, _ in (block[0] for block in shown)]
    files: list[Path] = []
    for block, name in zip(shown, names, strict=True):
        mark = f"-{block[0][0].evaluation[:6]}" if names.count(name) > 1 else ""
        files += [
            *draw_tradeoff([row for row, _ in block], out, name + mark),
            *_studies(block, rows, out, name + mark),
        ]
    return files


def _studies(block: Sequence[Found], everything: Sequence[Found], out: Path, name: str) -> list[Path]:
    dense = next((row for row, _ in block if row.dense), None)
    made, files = grids(block), list[Path]()
    methods = [grid.method for grid in made]
    for grid in made:
        mark = f"-{grid.digest[:6]}" if methods.count(grid.method) > 1 else ""
        files += draw_distribution(grid, dense, blind_of(block, everything), out, f"{name}-{grid.method}{mark}")
    compared = comparison(block)
    return files if compared is None else [*files, *draw_restoration(compared, dense, out, name)]


def _runs(runs: Sequence[Run], out: Path) -> tuple[list[Path], list[str]]:
    files, left = [], []
    for curve in series(runs):
        ours = kept.measured(curve)
        if not ours.targets:
            left.append(f"{curve.title}: no picture of what is kept, since none of its runs made a compressed model.")
            continue
        if all(run.record.pattern == "dense" for run in curve.runs):
            left.append(f"{curve.title}: no picture of what is kept, since nothing was pruned.")
            continue
        panels = [ours, *kept.published(curve.runs[0].record.task)]
        files += [*draw_components(panels, out, curve.name), *draw_layers(panels, out, curve.name)]
    for names, group in groupby(sorted(searches(runs), key=_place), key=_place):
        members = list(group)
        files += draw_trajectories(members[:SHOWN], out, "-".join(names))
        left += [f"{run.folder}: not in the picture of searches, which shows {SHOWN}." for run in members[SHOWN:]]
    if not searches(runs):
        left.append("no picture of a search: none of these runs searched with gates.")
    limited = [run for run in runs if "limit" in run.record.flags or not run.record.complete]
    left += [f"{run.folder}: not in the picture of costs, since it was not evaluated whole." for run in limited]
    files += _pictures(rows_of(run.record for run in runs), out)
    return files, left


def _place(run: Run) -> tuple[str, str, str]:
    return (run.record.suite, run.record.task, run.record.label or run.record.model)
