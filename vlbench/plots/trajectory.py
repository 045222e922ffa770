"""The way of a search: how the pruned ratio grows, how many gates are selected, and what the loss does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .canvas import COLOURS, GREY, figure, save
from .runs import Run

SHOWN = len(COLOURS)  # runs a picture can tell apart


def searches(runs: Sequence[Run]) -> list[Run]:
    """The runs one of whose links noted updates of gates."""
    return [run for run in runs if any(link.updates for link in _links(run))]


class _Link(NamedTuple):
    """What one link noted. updates: (step, ratio p_t); selected: how many gates each moved, empty where not noted."""

    name: str
    losses: list[float]
    updates: list[tuple[int, float]]
    selected: list[int]


def _links(run: Run) -> list[_Link]:
    """The links that noted something, in the order in which they worked."""
    noted = [(link.name, run.log[link.name]) for link in run.record.chain if link.name in run.log]
    return [_Link(n, log.get("loss", []), log.get("updates", []), log.get("selected", [])) for n, log in noted]


def draw_trajectories(runs: Sequence[Run], out: Path, name: str) -> list[Path]:
    """Panels over the steps of all links, one after another: ratio p_t, gates selected (where it was noted), loss.
    runs: at most SHOWN that searched."""
    counted = any(link.selected for run in runs for link in _links(run))
    labels = ["ratio aimed at, $p_t$ (%)", *(["gates selected"] if counted else []), "training loss"]
    drawn = figure(6.6, 1.0 + 1.7 * len(labels))
    axes = drawn.subplots(len(labels), 1, sharex=True, squeeze=False)[:, 0]
    rows: list[tuple[object, ...]] = []
    for run, colour in zip(runs, COLOURS, strict=False):
        title = f"{run.record.method} {run.record.sparsity_target}, seed {run.record.seed or 0}"
        start = 0
        for link in _links(run):
            steps = [start + step for step, _ in link.updates]
            ratios = [ratio for _, ratio in link.updates]
            curves: tuple[Sequence[float], ...] = ([100 * ratio for ratio in ratios], link.selected)
            for ax, curve in zip(axes, curves, strict=False):
                if curve:  # from nothing at the link's first step
                    ax.step([start, *steps], [0, *curve], where="post", color=colour, label=title)
            axes[-1].plot(range(start, start + len(link.losses)), link.losses, linewidth=0.9, color=colour)
            columns = (("loss", range(start, start + len(link.losses)), link.losses), ("ratio", steps, ratios))
            for quantity, at, values in (*columns, ("gates", steps, link.selected)):
                rows += [(run.record.cell, link.name, x, quantity, y) for x, y in zip(at, values, strict=False)]
            start += len(link.losses)
            axes[-1].axvline(start, color=GREY, linewidth=0.6, linestyle=":")
    for ax, label in zip(axes, labels, strict=True):
        ax.set_ylabel(label)
    axes[-1].set_xlabel("training step (dotted: the end of a link)")
    axes[0].set_ylim(bottom=0)
    drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, title=name)
    return save(drawn, ("cell", "link", "step", "quantity", "value"), rows, out, f"{name}-search")
