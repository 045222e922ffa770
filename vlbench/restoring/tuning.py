"""Tuning: the learning rate whose model is best on the select split. Never more than three are tried, so that every
method is tuned alike, and never on what is reported."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from pydantic import field_validator
from torch import Tensor

from ..compression.saved import distinct_tensors
from ..disk.storage import digest
from ..job import Job
from ..options import later
from ..tensors.checkpoint import CheckpointStore
from ..tensors.reading import load_into, weights_digest
from ..training.loop import Diverged, Schedule

MOST = 3  # learning rates

T = TypeVar("T", bound="TuneOptions")


class TuneOptions(Schedule):
    """A stage that may be trained at several learning rates."""

    tune: str = later(
        "",
        description="up to three learning rates like 1e-3,5e-4,2e-4, each trained from the same start; the best on the "
        "select split stays, and takes the place of lr",
    )

    @field_validator("tune")
    @classmethod
    def _few(cls, value: str) -> str:
        try:
            rates = [float(part) for part in value.split(",")] if value else []
        except ValueError:
            rates = [math.nan]
        if not all(math.isfinite(rate) and rate > 0 for rate in rates):
            raise ValueError(f"{value} should be learning rates above 0 like 1e-3,5e-4")
        if len(rates) > MOST or len(set(rates)) < len(rates):
            raise ValueError(f"{value} should be at most {MOST} different learning rates: every method is tuned alike")
        return value

    @property
    def rates(self) -> list[float]:
        return [float(part) for part in self.tune.split(",")] if self.tune else []

    @property
    def chooses(self) -> bool:
        return bool(self.rates) or super().chooses


@dataclass
class Trials:
    """What is known of the rates tried so far. values: of the metric on select, None where the loss diverged. best: the
    number of the rate to keep, -1 while there is none; its own budget and log."""

    start: str
    values: list[float | None] = field(default_factory=list)
    best: int = -1
    steps: int = 0
    samples_seen: int = 0
    log: dict[str, Any] = field(default_factory=dict)


def tuned(job: Job, stage: str, options: T, train: Callable[[Job, T], Any]) -> None:
    """train(job, options); or, where options.rates has learning rates, train(trial, options at that rate) of a copy of
    the model at each, and the weights of the best one stay. Ties go to the first.

    The budget counts what is kept, the log under `stage` says what was tried. Resumes in the rate that was interrupted.
    Raises Diverged where the loss is not finite at any of the rates.
    """
    if not options.rates:
        train(job, options)
        return
    store = CheckpointStore(
        job.here.folder / "checkpoint" / f"{stage}-tuned", {**job.here.identity, "stage": stage}, 0, job.here.world
    )
    start = job.here.world.share(
        "rates are tried",
        digest([weights_digest(job.model.net), options.recorded(), job.here.seed, job.here.precision]),
    )
    trials, kept = _resumed(store, start)
    for number in range(len(trials.values), len(options.rates)):
        trial = job.trial(f"{stage}-{number}")
        if _is_best(trial, train, options.model_copy(update={"lr": options.rates[number], "tune": ""}), trials):
            kept = distinct_tensors(trial.model.net)
            trials.best, trials.steps, trials.samples_seen = (
                number,
                trial.changes.state.steps,
                trial.changes.state.samples_seen,
            )
            trials.log = trial.changes.state.log.get(stage, {})
        store.save(number + 1, kept, asdict(trials))
        shutil.rmtree(trial.here.folder, ignore_errors=True)
    _keep(job, stage, options, trials, kept)


def _resumed(store: CheckpointStore, start: str) -> tuple[Trials, dict[str, Tensor]]:
    """What an interrupted run from the same start has found, and the weights it would keep."""
    state = store.load()
    if state is None or state[2]["start"] != start:
        return Trials(start), {}
    return Trials(**state[2]), state[1]


def _is_best(trial: Job, train: Callable[[Job, T], Any], options: T, trials: Trials) -> bool:
    """Train and evaluate one rate, note its value, and say whether it is better than all before."""
    try:
        train(trial, options)
    except Diverged:
        trials.values.append(None)
        return False
    value = trial.evaluate_select()
    higher = trial.task.metrics[trial.task.metric] == "higher"
    best = None if trials.best < 0 else trials.values[trials.best]
    trials.values.append(value)
    return best is None or (value > best if higher else value < best)


def _keep(job: Job, stage: str, options: TuneOptions, trials: Trials, kept: Mapping[str, Tensor]) -> None:
    """The best weights into the job's model, and what they took into its state."""
    if trials.best < 0:
        raise Diverged(f"the loss is not finite at any of tune={options.tune}: try lower learning rates.")
    load_into(job.model.net, dict(kept))
    state, names = job.changes.state, options.tune.split(",")
    state.trained = True
    state.steps += trials.steps
    state.samples_seen += trials.samples_seen
    entry = {
        "n_tuned": len(names),
        "lr": options.rates[trials.best],
        "select": dict(zip(names, trials.values, strict=True)),
    }
    state.log[stage] = {**trials.log, **entry}
