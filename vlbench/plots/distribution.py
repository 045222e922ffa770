"""The picture of a grid over vision and language (spread.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..leaderboard.rows import Row
from ..leaderboard.scales import titled
from ..leaderboard.tables import MINI_WARNING
from .canvas import COLOURS, GREY, MARKERS, figure, save
from .spread import ISO_PARAMETER, SIDES, Grid, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

THIN: dict[str, Any] = {"elinewidth": 0.8, "capsize": 2}  # bars of intervals
BLIND = "dense, without images"
HEADER = (
    *("panel", "line", "asked", "vision", "language", "sparsity", "value", "low", "high", "delta", "seeds", "config"),
)


def draw_distribution(grid: Grid, dense: Row | None, blind: Row | None, out: Path, name: str) -> list[Path]:
    """A panel for each kind of line that there is; on all of them the dense model, with and without images."""
    row = (*grid.sides, *grid.lines, *grid.patterns)[0].row
    bases = [(one, title, style) for one, title, style in ((dense, "dense", "--"), (blind, BLIND, ":")) if one]
    panels = [
        ("sides", grid.sides, "ratio of what is pruned (%)"),
        ("lines", grid.lines, "ratio of the vision towers (%)"),
        ("patterns", grid.patterns, "n:m pattern"),
    ]
    panels = [panel for panel in panels if panel[1]]
    drawn = figure(4.1 * len(panels) + 0.4, 4.6)
    axes = drawn.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (kind, points, label) in zip(axes, panels, strict=True):
        (_bars if kind == "patterns" else _lines)(ax, points, len(SIDES) if kind == "lines" else 0)
        for base, title, style in bases:
            ax.axhline(base.value, color=GREY, linewidth=1.2, linestyle=style, zorder=4, label=title)
        ax.set_xlabel(label)
        ax.set_ylim(bottom=0)
    handles = {title: handle for ax in axes for handle, title in zip(*ax.get_legend_handles_labels(), strict=True)}
    drawn.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3, fontsize=8)
    axes[0].set_ylabel(f"{titled(row.task, row.metric)} (%)")
    notes = ["bars: 95 % intervals", *([MINI_WARNING] if row.suite == "mini" else [])]
    axes[0].set_title("; ".join(notes), fontsize=7, color=GREY, loc="left")
    drawn.suptitle(
        f"{row.suite} / {row.task} / {row.label or row.model}: {grid.method} over the modalities", fontsize=10
    )
    lines = [_line(kind, point) for kind, points, _ in panels for point in points]
    lines += [("all", title, "", "", "", *_numbers_of(base)) for base, title, _ in bases]
    return save(drawn, HEADER, lines, out, f"{name}-distribution")


def _lines(ax: Axes, points: Sequence[Point], first: int) -> None:
    """first: number of the first colour."""
    for number, line in enumerate(dict.fromkeys(point.line for point in points), start=first):
        there = [point for point in points if point.line == line]
        ax.errorbar(
            [p.x for p in there], [p.row.value for p in there], yerr=half_widths([p.row for p in there]),
            color=COLOURS[number % len(COLOURS)], marker=MARKERS[number % len(MARKERS)], markersize=5, linewidth=1.3,
            elinewidth=0.8, capsize=2, linestyle="--" if line.startswith(ISO_PARAMETER) else "-", label=line, zorder=3,
        )  # fmt: skip
    ax.set_xlim(-3, 103)


def _bars(ax: Axes, points: Sequence[Point], first: int) -> None:
    """A group of bars a pattern, in the colours of the sides."""
    for number, side in enumerate(SIDES):
        there = [point for point in points if point.line == side]
        ax.bar(
            [p.x + 0.27 * (number - 1) for p in there], [p.row.value for p in there], width=0.25,
            yerr=half_widths([p.row for p in there]), color=COLOURS[first + number], error_kw=THIN, label=side,
            zorder=2,
        )  # fmt: skip
    targets = {int(point.x): point.row.sparsity_target for point in points}
    ax.set_xticks(list(targets), list(targets.values()))


def half_widths(rows: Sequence[Row]) -> list[list[float]]:
    """Of the intervals, below and above the values; nothing where one cluster allows no interval."""
    below = [row.value - row.low if row.low is not None else 0.0 for row in rows]
    above = [row.high - row.value if row.high is not None else 0.0 for row in rows]
    return [below, above]


def _line(panel: str, point: Point) -> tuple[object, ...]:
    ratios = ["" if ratio is None else ratio for ratio in (point.vision, point.language)]
    return (panel, point.line, point.row.sparsity_target, *ratios, *_numbers_of(point.row))


def _numbers_of(row: Row) -> tuple[object, ...]:
    numbers = (row.sparsity, row.value, row.low, row.high, row.delta)
    return (*("" if value is None else value for value in numbers), row.seeds, row.config)
