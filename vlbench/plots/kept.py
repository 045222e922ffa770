"""What pruning keeps of components and layers, target by target: measured here, and published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from ..leaderboard.published import RetainedUnits, load_heat_map
from .retained import by_component, by_layer, retained
from .runs import Series, by_target


@dataclass(frozen=True)
class Kept:
    """One target, the mean over its seeds. gone: realised fraction of the prunable set; of a published ratio like 4x,
    three quarters. components: name -> fraction kept; layers: (site without its layer, layer from 0) -> the same."""

    target: str
    gone: float
    components: Mapping[str, float]
    layers: Mapping[tuple[str, int], float]

    @property
    def rows(self) -> list[str]:
        """Sites without their layers, in order of data flow."""
        return list(dict.fromkeys(row for row, _ in self.layers))


@dataclass(frozen=True)
class Panel:
    """Targets that are drawn together."""

    title: str
    published: bool
    targets: tuple[Kept, ...]


def measured(series: Series) -> Panel:
    """The targets of a series; empty where none of its runs saved a model."""
    return Panel(series.title, False, tuple(_measured(series)))


def _measured(series: Series) -> list[Kept]:
    panels = []
    for target, runs in by_target([run for run in series.runs if run.model.is_dir()]):
        models = [retained(run.model) for run in runs]
        parts = [by_component(sites) for sites in models]
        components = {name: fmean(part[name] for part in parts) for name in parts[0]}
        panels.append(Kept(target, fmean(run.record.sparsity for run in runs), components, by_layer(models)))
    return panels


def published(task: str) -> list[Panel]:
    """The published heat maps of a task, one a method and model. Of a component, the mean over its sites and layers:
    those of one component are of one size there."""
    groups: dict[tuple[str, str], list[RetainedUnits]] = {}
    for cell in load_heat_map():
        if cell.task == task:
            groups.setdefault((cell.method, cell.model), []).append(cell)
    return [
        Panel(f"published: {method}, {model}", True, tuple(_published(cells)))
        for (method, model), cells in groups.items()
    ]


def _published(cells: Sequence[RetainedUnits]) -> list[Kept]:
    bars = []
    for target in dict.fromkeys(cell.target for cell in cells):
        part = [cell for cell in cells if cell.target == target]
        names = dict.fromkeys(cell.component for cell in part)
        components = {name: fmean(c.retained for c in part if c.component == name) for name in names}
        gone = 1 - 1 / float(target.rstrip("x"))
        bars.append(Kept(target, gone, components, {(c.row, c.layer): c.retained for c in part}))
    return bars
