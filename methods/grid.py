"""Grid search over the ratios of two parts of a model: the search that a unified ranking saves (Shi et al. 2023).

The first part's ratio r runs over a grid and the second's r' follows from the target p: r S + r' S' = p (S + S'), S and
S' being the parts' sizes. Each candidate is cut by structured magnitude, evenly within a part, trained for a few steps
from the dense weights, and judged on the select split. The best goes on; the training of all counts in the budget.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from vlbench.compression.cut import Kept
from vlbench.compression.saved import distinct_tensors
from vlbench.errors import UserError
from vlbench.job import Job
from vlbench.method import Chain, Context, Method, chain, method
from vlbench.options import PruneOptions
from vlbench.pruning.allocation import refuse_unreachable, uniform
from vlbench.pruning.modality import modality
from vlbench.pruning.scoring import unit_importance
from vlbench.structure import Site, Structure
from vlbench.tensors.reading import load_into
from vlbench.training.loop import Schedule

Parts = dict[str, list[Site]]


class GridOptions(PruneOptions, Schedule):
    """The grid, and the training of one candidate."""

    steps: int = 30
    lr: float = 5e-4
    batch_size: int = 128
    decay: Literal["cosine", "constant", "poly"] = "constant"
    by: Literal["modality", "kind"] = Field(
        "modality",
        description="the two parts: vision and language towers, or attention and feed-forward sites (for a model of "
        "one modality)",
    )
    points: int = Field(5, ge=2, description="candidates")
    width: float = Field(
        0.3, gt=0, lt=1, description="the first part's ratio runs over target +- width, as far as the target allows"
    )

    @property
    def chooses(self) -> bool:
        return True


def _mini(context: Context) -> dict[str, Any]:
    """A model that sees images only has one modality, and its two parts are kinds; batches as finetune has them."""
    return {**context.says("mini"), **({} if context.texts else {"by": "kind"})}


@method(
    "grid_search",
    title="Grid search over two ratios on the select split, not finetuned",
    role="pruner",
    patterns=("structured",),
    uses_seed=True,
    paper="https://arxiv.org/abs/2301.13741",
)
class GridSearch(Method):
    """The first half of the grid search; `grid` is this and finetune. A killed run goes on where it was."""

    Options = GridOptions
    parallel = True
    recipes = {"mini": _mini}  # noqa: RUF012

    def check(self, structure: Structure) -> None:
        grid(structure, self.options)

    def apply(self, job: Job) -> None:
        structure = job.changes.structure
        ratios = grid(structure, self.options)
        weight = job.model.net.get_parameter
        score = {s.name: unit_importance(s, lambda name: weight(name).detach()) for s in structure.sites}
        keeps = [spread(structure, score, one, self.options) for one in ratios]
        store = job.here.store("grid_search", every_seconds=0.0)
        done, best, values = store.load() or (0, {}, [])
        for number in range(done, len(ratios)):
            job.here.progress("grid", number, len(ratios), _told(ratios[number]))
            value, tensors = self._try(job, number, keeps[number])
            values = [*values, value]
            best = tensors if _best(job, values) == number else best
            store.save(number + 1, best, values)
        chosen = _best(job, values)
        job.changes.cut(keeps[chosen], structure)
        load_into(job.model.net, best)
        self._account(job, ratios, values, chosen)

    def _try(self, job: Job, number: int, keep: Kept) -> tuple[float, dict[str, Tensor]]:
        """The value of a candidate on the select split, and its weights."""
        trial = job.trial(f"grid_search-{number}")
        trial.changes.cut(keep)
        if self.options.steps:
            trial.train("grid_search", self.options)
        value = trial.evaluate_select()
        shutil.rmtree(trial.here.folder, ignore_errors=True)
        return value, distinct_tensors(trial.model.net)

    def _account(self, job: Job, ratios: list[dict[str, float]], scores: list[float], chosen: int) -> None:
        """What all candidates took and gave."""
        options: GridOptions = self.options
        state, steps = job.changes.state, options.steps * len(ratios)
        state.steps += steps
        if steps:
            state.samples_seen += len(ratios) * job.data.batches(options.batch_size).seen(options.steps)
        state.trained = state.trained or steps > 0
        candidates = [
            {"ratios": {k: round(r, 6) for k, r in one.items()}, job.task.metric: value}
            for one, value in zip(ratios, scores, strict=True)
        ]
        evaluated = len(candidates) * len(job.data.samples("select"))
        state.log["grid_search"] = {"candidates": candidates, "chosen": chosen, "evaluated_on_select": evaluated}


def _told(ratios: Mapping[str, float]) -> str:
    return " ".join(f"{part}={ratio:.3f}" for part, ratio in ratios.items())


def _best(job: Job, scores: list[float]) -> int:
    """The first of the best."""
    sign = 1 if job.task.metrics[job.task.metric] == "higher" else -1
    return max(range(len(scores)), key=lambda i: sign * scores[i])


def parts_of(structure: Structure, by: str) -> Parts:
    """Name -> sites of the two parts. Raises UserError where there are not two."""
    parts: Parts = {}
    for tower in structure.towers:
        for site in tower.sites:
            parts.setdefault(modality(tower) if by == "modality" else site.kind, []).append(site)
    if len(parts) != 2:
        other = {"modality": "kind", "kind": "modality"}[by]
        raise UserError(
            f"a grid is over two parts, and this model has by={by} only {', '.join(parts)}: write by={other}."
        )
    return parts


def grid(structure: Structure, options: GridOptions) -> list[dict[str, float]]:
    """The candidates: part -> ratio. Raises UserError where the target cannot be met."""
    cost = {s.name: float(s.entries_per_unit) for s in structure.sites}
    refuse_unreachable({s.name: s.units for s in structure.sites}, cost, options.fraction)
    parts = parts_of(structure, options.by)
    (first, size), (second, rest) = ((name, _size(sites)) for name, sites in parts.items())
    most = {name: 1 - sum(s.entries_per_unit for s in sites) / _size(sites) for name, sites in parts.items()}
    target = options.fraction
    low = max(0.0, target - options.width, (target * (size + rest) - most[second] * rest) / size)
    high = min(most[first], target + options.width, target * (size + rest) / size)
    points = []
    for point in range(options.points):
        ratio = low + (high - low) * point / (options.points - 1)
        points.append({first: ratio, second: (target * (size + rest) - ratio * size) / rest})
    return points


def spread(
    structure: Structure, score: Mapping[str, Tensor], ratios: Mapping[str, float], options: GridOptions
) -> Kept:
    """The units that stay: the same fraction in every site of a part. The second part makes up for what whole units
    round away in the first."""
    (first, sites), (_, others) = parts_of(structure, options.by).items()
    keep = uniform({s.name: score[s.name] for s in sites}, ratios[first])
    removed = sum(s.entries_per_unit * (s.units - len(keep[s.name])) for s in sites)
    ratio = (options.fraction * (_size(sites) + _size(others)) - removed) / _size(others)
    return {**keep, **uniform({s.name: score[s.name] for s in others}, min(max(ratio, 0.0), 1.0))}


def _size(sites: list[Site]) -> int:
    """Entries of the prunable matrices."""
    return sum(site.entries_per_unit * site.units for site in sites)


@chain(
    "grid",
    title="Grid search over the ratios of two parts",
    links=("grid_search", "finetune"),
    paper="https://arxiv.org/abs/2301.13741",
)
class Grid(Chain):
    """The best of a grid of ratios, then finetuning."""

    recipes = {"mini": {}}  # noqa: RUF012
