"""Quality against parameters and MACs: our rows, and the published ones marked as such."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..leaderboard.points import Spot, measured, published
from ..leaderboard.published import load_published
from ..leaderboard.rows import Row
from ..leaderboard.scales import titled
from ..leaderboard.tables import MINI_WARNING
from .canvas import COLOURS, GREY, MARKERS, figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Axis = Literal["params", "macs"]
AXES: tuple[tuple[Axis, str, float, str], ...] = (
    ("params", "parameters left", 1e6, "millions"),
    ("macs", "MACs left", 1e9, "billions"),
)
WIDE = 140  # letters that fit beside each other in the legend
PANELS, LINE = 3.6, 0.2  # inches: of the panels with their titles and labels, and of a line of the legend
LINES = ("-", "--", "-.")  # of the first eight colours, of the next eight ...
NOTE = "grey: full-size models and other protocols, as fractions of their own dense models"


def draw_tradeoff(rows: Sequence[Row], out: Path, name: str) -> list[Path]:
    """Two panels. rows: of one block. On suite mini everything is a fraction of its dense model: a model of 0.4 million
    parameters and a published one of 260 share no axis."""
    fractions = rows[0].suite == "mini"
    ours, theirs = measured(rows), published(rows, load_published())
    if fractions:
        theirs = [spot for spot in theirs if spot.fraction is not None and spot.fraction.value is not None]
    drawn = figure(9.0, PANELS)
    axes = drawn.subplots(1, 2, sharey=True)
    for ax, (axis, label, unit, words) in zip(axes, AXES, strict=True):
        _panel(ax, axis, ours, theirs, 0.01 if fractions else unit, fractions)
        ax.set_xlabel(f"{label} ({'% of the dense model' if fractions else words})")
    metric = titled(rows[0].task, rows[0].metric)
    axes[0].set_ylabel(f"{metric} (% of the dense model's)" if fractions else f"{metric} (%)")
    handles, labels = axes[0].get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: labels[i].startswith("published"))  # ours first
    columns = max(1, min(3, WIDE // max(map(len, labels))))
    drawn.set_figheight(PANELS + LINE * math.ceil(len(labels) / columns))  # the panels keep theirs, however many rows
    drawn.legend(
        [handles[i] for i in order], [labels[i] for i in order], loc="outside lower center", ncols=columns, fontsize=8
    )
    drawn.suptitle(f"{rows[0].suite} / {rows[0].task} / {rows[0].label or rows[0].model}", fontsize=10)
    notes = ["bars: 95 % intervals", *([MINI_WARNING] if fractions else [])]
    axes[0].set_title("; ".join(notes), fontsize=7, color=GREY, loc="left")
    if theirs and fractions:
        axes[1].set_title(NOTE, fontsize=7, color=GREY, loc="left")
    return save(drawn, HEADER, [_line(spot) for spot in (*ours, *theirs)], out, f"{name}-tradeoff")


HEADER = (
    *("origin", "name", "pattern", "trained", "params", "macs", "value", "low", "high"),
    *("params_fraction", "macs_fraction", "value_fraction", "protocol"),
)


def _line(spot: Spot) -> tuple[object, ...]:
    fraction = spot.fraction
    shares = ("", "", "") if fraction is None else (fraction.params, fraction.macs, fraction.value)
    sizes = (spot.size.params, spot.size.macs, spot.size.value, spot.low, spot.high)
    origin = "published" if spot.published else "measured"
    return (origin, spot.name, spot.pattern, "yes" if spot.trained else "no", *sizes, *shares, spot.protocol)


def _panel(ax: Axes, axis: Axis, ours: Sequence[Spot], theirs: Sequence[Spot], unit: float, fractions: bool) -> None:
    """unit: what one step of the x axis stands for."""
    patterns = list(dict.fromkeys(spot.pattern for spot in ours))
    families = list(dict.fromkeys(spot.family for spot in ours))
    for kind in dict.fromkeys((spot.family, spot.pattern, spot.trained) for spot in ours):
        spots = [spot for spot in ours if (spot.family, spot.pattern, spot.trained) == kind]
        places = [(place, spot) for spot in spots if (place := _at(spot, axis, fractions))]
        at = sorted(((x / unit, y, spot) for (x, y), spot in places), key=lambda point: point[:2])
        scale = 100 if fractions else 1
        turn, number = divmod(families.index(kind[0]), len(COLOURS))
        colour, marker = COLOURS[number], MARKERS[(patterns.index(kind[1]) + turn * len(patterns)) % len(MARKERS)]
        label = kind[0] if kind[1] == "dense" else f"{kind[0]}, {kind[1]}"
        ax.errorbar(
            [x for x, _, _ in at], [scale * y for _, y, _ in at], yerr=_bars([s for _, _, s in at], fractions),
            color=colour, marker=marker, linestyle=LINES[turn % len(LINES)], markersize=6, linewidth=1.2,
            elinewidth=0.8, capsize=2, markerfacecolor=colour if kind[2] else "white",
            label=f"{label}, untrained" if not kind[2] and kind[1] != "dense" else label, zorder=3,
        )  # fmt: skip
    _competitors(ax, axis, theirs, unit, fractions)


def _competitors(ax: Axes, axis: Axis, theirs: Sequence[Spot], unit: float, fractions: bool) -> None:
    """Grey: the published ones, a marker a method."""
    for number, family in enumerate(dict.fromkeys(spot.family for spot in theirs)):
        spots = [spot for spot in theirs if spot.family == family]
        at = [place for spot in spots if (place := _at(spot, axis, fractions))]
        ax.plot(
            [x / unit for x, _ in at], [(100 if fractions else 1) * y for _, y in at], linestyle=":", linewidth=0.7,
            marker="xd+1234hp8"[number % 10], color=GREY, markersize=5, zorder=2, label=f"published: {family}",
        )  # fmt: skip


def _at(spot: Spot, axis: Axis, fractions: bool) -> tuple[float, float] | None:
    size = spot.fraction if fractions else spot.size
    x = None if size is None else getattr(size, axis)
    return None if size is None or x is None or size.value is None else (x, size.value)


def _bars(spots: Sequence[Spot], fractions: bool) -> list[list[float]] | None:
    """Half widths of the intervals, below and above, in the units of the y axis."""
    corners: list[list[float]] = [[], []]
    for spot in spots:
        value = spot.size.value or 0.0
        share = spot.fraction.value if fractions and spot.fraction is not None else None
        scale = 100 * share / value if share and value else 1.0
        corners[0].append(scale * (value - spot.low) if spot.low is not None else 0.0)
        corners[1].append(scale * (spot.high - value) if spot.high is not None else 0.0)
    return corners
