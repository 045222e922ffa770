"""What restorers give back after the same pruner, and what they leave of its sparsity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..disk.storage import canonical, digest
from ..leaderboard.filters import Found
from ..leaderboard.rows import Row
from ..leaderboard.scales import titled
from ..leaderboard.tables import MINI_WARNING
from ..records.record import Record
from .canvas import COLOURS, GREY, figure, save
from .distribution import THIN, half_widths

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NONE = "none"
HEADER = (
    *("pruner", "target", "restorer", "sparsity", "value", "low", "high", "delta", "delta_low", "delta_high"),
    *("seeds", "steps", "config"),
)
SKIPPED = ("sparsity", "pattern")  # of a pruner: the target, which stands below the bars


@dataclass(frozen=True)
class Panel:
    """Rows of one pruner: (target, restorer) -> row."""

    pruner: str
    rows: Mapping[tuple[str, str], Row]

    @property
    def targets(self) -> list[str]:
        """Fractions by size, then patterns."""
        return sorted(dict.fromkeys(target for target, _ in self.rows), key=_order)


@dataclass(frozen=True)
class Comparison:
    """The pruners of a block that were followed by two restorers at least. restorers: in the order of the legend, none
    first; controls: restorer -> the row of the dense model that was trained so."""

    panels: tuple[Panel, ...]
    restorers: tuple[str, ...]
    controls: Mapping[str, Row]


def comparison(listed: Sequence[Found]) -> Comparison | None:
    """Of the rows of one block; None where restorers cannot be compared."""
    names = _restorers(listed)
    groups: dict[str, dict[tuple[str, str], Row]] = {}
    titles: dict[str, str] = {}
    for (row, records), restorer in zip(listed, names, strict=True):
        if row.sparsity_target:
            pruner = records[0].chain[0]
            options = {k: v for k, v in pruner.options.items() if k not in SKIPPED}
            key = digest([pruner.name, pruner.version, options])
            titles[key] = pruner.name
            groups.setdefault(key, {})[row.sparsity_target, restorer] = row
    groups = {key: rows for key, rows in groups.items() if len({r for _, r in rows} - {NONE}) > 1}
    if not groups:
        return None
    shown = [titles[key] for key in groups]
    panels = [
        Panel(titles[key] + (f"-{key[:6]}" if shown.count(titles[key]) > 1 else ""), rows)
        for key, rows in groups.items()
    ]
    used = dict.fromkeys(restorer for panel in panels for _, restorer in panel.rows)
    ordered = sorted(used, key=lambda restorer: restorer != NONE)
    named = zip(listed, names, strict=True)
    controls = {name: row for (row, _), name in named if not row.sparsity_target and name in used and name != NONE}
    return Comparison(tuple(panels), tuple(ordered), controls)


def _restorers(rows: Sequence[Found]) -> list[str]:
    """The name of what follows the pruner in every row, with the options that tell it from others of its name."""
    plain = ["+".join(link.name for link in records[0].chain[1:]) or NONE for _, records in rows]
    options = [_options(records[0]) for _, records in rows]
    labels = []
    for name, mine in zip(plain, options, strict=True):
        others = [other for other_name, other in zip(plain, options, strict=True) if other_name == name]
        varying = [k for k in sorted(mine) if len({other.get(k) for other in others}) > 1]
        labels.append(" ".join([name, *(f"{key}={mine[key]}" for key in varying)]))
    return labels


def _options(record: Record) -> dict[str, str]:
    return {
        key: value if isinstance(value, str) else canonical(value)
        for link in record.chain[1:]
        for key, value in {**link.options, "version": link.version}.items()
    }


def _order(target: str) -> tuple[Any, ...]:
    if ":" in target:
        return (1, *map(int, target.split(":")))
    return (0, float(target))


# The picture -------------------------------------------------------------------------------------------------------


def draw_restoration(made: Comparison, dense: Row | None, out: Path, name: str) -> list[Path]:
    """Two panels a pruner: the metric above and the realised sparsity below, a bar a restorer at every target. Lines:
    the dense model, and the dense model trained in the colour of the restorer."""
    row = next(iter(made.panels[0].rows.values()))
    wide = max(len(panel.targets) for panel in made.panels)
    drawn = figure(1.2 + len(made.panels) * max(3.0, 0.19 * wide * (len(made.restorers) + 1)), 5.4)
    axes = drawn.subplots(2, len(made.panels), sharey="row", sharex="col", squeeze=False, height_ratios=(3, 1))
    for (above, below), panel in zip(axes.T, made.panels, strict=True):
        _bars(above, panel, made.restorers, values=True)
        _bars(below, panel, made.restorers, values=False)
        above.set_title(panel.pruner)
        if dense is not None:
            above.axhline(dense.value, color=GREY, linewidth=1.0, linestyle="--", zorder=1, label="dense")
        for restorer, control in made.controls.items():
            colour = _colour(restorer, made.restorers)
            above.axhline(
                control.value, color=colour, linewidth=1.0, linestyle=":", zorder=1, label=f"dense+{restorer}"
            )
        below.set_xticks(range(len(panel.targets)), panel.targets)
        below.set(xlabel="sparsity asked for", ylim=(0, 100))
    axes[0][0].set_ylabel(f"{titled(row.task, row.metric)} (%)")
    axes[1][0].set_ylabel("realised\nsparsity (%)")
    drawn.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    notes = ["bars: 95 % intervals", *([MINI_WARNING] if row.suite == "mini" else [])]
    title = f"{row.suite} / {row.task} / {row.label or row.model}: restorers"
    drawn.suptitle(f"{title}\n{'; '.join(notes)}", fontsize=10)  # in two lines: one panel alone is narrow
    lines = [_line(panel.pruner, key, one) for panel in made.panels for key, one in _ordered(panel, made.restorers)]
    lines += [_line("dense", ("", restorer), control) for restorer, control in made.controls.items()]
    return save(drawn, HEADER, lines, out, f"{name}-restoration")


def _bars(ax: Axes, panel: Panel, restorers: Sequence[str], *, values: bool) -> None:
    """values: the metric with its interval; else the realised sparsity."""
    width = 0.86 / len(restorers)
    for number, restorer in enumerate(restorers):
        there = [(i, panel.rows[t, restorer]) for i, t in enumerate(panel.targets) if (t, restorer) in panel.rows]
        rows = [row for _, row in there]
        at = [i + width * (number - (len(restorers) - 1) / 2) for i, _ in there]
        ax.bar(
            at, [row.value if values else 100 * row.sparsity for row in rows], width=0.92 * width,
            yerr=half_widths(rows) if values else None, color=_colour(restorer, restorers), error_kw=THIN,
            label=restorer, zorder=2,
        )  # fmt: skip
        if not values:
            for x, row in zip(at, rows, strict=True):
                ax.text(x, 100 * row.sparsity + 3, f"{100 * row.sparsity:.0f}", ha="center", fontsize=5, color=GREY)
    ax.grid(visible=False, axis="x")


def _colour(restorer: str, restorers: Sequence[str]) -> str:
    """Grey of none, and a colour of each restorer."""
    return "#B5B5B5" if restorer == NONE else COLOURS[(restorers.index(restorer) - (NONE in restorers)) % len(COLOURS)]


def _ordered(panel: Panel, restorers: Sequence[str]) -> list[tuple[tuple[str, str], Row]]:
    keys = [(target, restorer) for target in panel.targets for restorer in restorers]
    return [(key, panel.rows[key]) for key in keys if key in panel.rows]


def _line(pruner: str, key: tuple[str, str], row: Row) -> tuple[object, ...]:
    numbers = (row.sparsity, row.value, row.low, row.high, row.delta, row.delta_low, row.delta_high)
    return (pruner, *key, *("" if value is None else value for value in numbers), row.seeds, row.steps, row.config)
