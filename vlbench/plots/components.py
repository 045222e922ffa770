"""Fraction kept of every component and layer as the ratio grows, the published figure beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .canvas import COLOURS, GREY, MARKERS, SHADES, figure, save
from .kept import Kept, Panel
from .retained import COMPONENTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

DARK = 0.55  # fraction of a shade from which on white letters are easier to read


def draw_components(panels: Sequence[Panel], out: Path, name: str) -> list[Path]:
    """A panel a method: fraction kept of each component against what is gone of all."""
    drawn = figure(4.4 * len(panels) + 0.6, 3.7)
    present = {name for panel in panels for goal in panel.targets for name in goal.components}
    ordered = [name for name in COMPONENTS.values() if name in present]
    names = [*ordered, *sorted(present - set(ordered))]
    axes = drawn.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, panel in zip(axes, panels, strict=True):
        _lines(ax, panel.targets, names)
        label = "units gone, by the ratio aimed at (%)" if panel.published else "gone of the prunable weights (%)"
        ax.set(title=panel.title, xlabel=label, ylim=(0, 103), xlim=(0, 100))
    axes[0].set_ylabel("kept of the component (%)")
    legend = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    drawn.legend([legend[name] for name in names], names, loc="outside lower center", ncols=min(5, len(names)))
    rows = [
        (_origin(panel), goal.target, goal.gone, name, value)
        for panel in panels for goal in panel.targets for name, value in goal.components.items()
    ]  # fmt: skip
    return save(drawn, ("origin", "target", "gone", "component", "kept"), rows, out, f"{name}-components")


def _lines(ax: Axes, targets: Sequence[Kept], names: Sequence[str]) -> None:
    for number, name in enumerate(names):
        there = [goal for goal in targets if name in goal.components]
        ax.plot(
            [100 * goal.gone for goal in there], [100 * goal.components[name] for goal in there],
            marker=MARKERS[number % len(MARKERS)], markersize=5, linewidth=1.4,
            color=COLOURS[number % len(COLOURS)], label=name,
        )  # fmt: skip
    ax.plot((0, 100), (100, 0), color=GREY, linewidth=0.8, linestyle=":", zorder=1)
    ax.text(
        3, 95, "all alike", color=GREY, fontsize=7, va="top", rotation=-45, rotation_mode="anchor",
        transform_rotates_text=True,
    )  # fmt: skip


def draw_layers(panels: Sequence[Panel], out: Path, name: str) -> list[Path]:
    """A line of heat maps a method, one a target: sites down, layers across."""
    wide = max(len(panel.targets) for panel in panels)
    layers = max(layer for panel in panels for goal in panel.targets for _, layer in goal.layers) + 1
    heights = [0.24 * len(panel.targets[0].rows) + 0.8 for panel in panels]
    drawn = figure(2.2 + wide * max(1.5, 0.22 * layers), sum(heights) + 0.2)
    grid = drawn.subplots(len(panels), wide, squeeze=False, height_ratios=heights)
    image = None
    for axes, panel in zip(grid, panels, strict=True):
        for ax in axes[len(panel.targets) :]:
            ax.set_axis_off()
        for ax, goal in zip(axes, panel.targets, strict=False):
            image = _heat(ax, goal)
            ax.set_title(goal.target if panel.published else f"{100 * goal.gone:.1f}% gone", fontsize=9)
        axes[0].set_title(f"{panel.title}\n{axes[0].get_title()}", loc="left", fontsize=9)
        axes[0].set_title("")
        axes[0].set_yticks(range(len(panel.targets[0].rows)), panel.targets[0].rows)
        axes[0].set_xlabel("layer")
    if image is not None:
        drawn.colorbar(image, ax=grid, label="kept (%)", fraction=0.03, pad=0.01, aspect=25)
    rows = [
        (_origin(panel), goal.target, row, layer + 1, value)
        for panel in panels for goal in panel.targets for (row, layer), value in goal.layers.items()
    ]  # fmt: skip
    return save(drawn, ("origin", "target", "site", "layer", "kept"), rows, out, f"{name}-layers")


def _heat(ax: Axes, goal: Kept) -> AxesImage:
    """One target. Fields of towers that have fewer layers stay empty."""
    layers = max(layer for _, layer in goal.layers) + 1
    field = np.full((len(goal.rows), layers), np.nan)
    for (row, layer), value in goal.layers.items():
        field[goal.rows.index(row), layer] = 100 * value
    image = ax.imshow(field, cmap=SHADES, vmin=0, vmax=100, aspect="auto")
    for (y, x), value in np.ndenumerate(field):
        if not np.isnan(value):
            colour = "white" if value > 100 * DARK else "black"
            ax.text(x, y, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=6)
    ax.grid(False)
    ax.set_xticks(range(layers), [str(layer + 1) for layer in range(layers)], fontsize=7)
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return image


def _origin(panel: Panel) -> str:
    return "published" if panel.published else "measured"
