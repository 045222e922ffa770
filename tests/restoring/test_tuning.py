"""Tuning: each rate from the same start, the best on select stays, the budget is that of one training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from vlbench.cell.resolve import resolve
from vlbench.checks.tiny import Outcome, Workshop
from vlbench.compression.state import Compression
from vlbench.errors import UserError
from vlbench.job import Job
from vlbench.machine.ui import Screen
from vlbench.plugins.table import table
from vlbench.restoring.tuning import TuneOptions, tuned
from vlbench.tensors.reading import weights_digest
from vlbench.training.loop import Diverged


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(table("methods").get("finetune"), tmp_path_factory.mktemp("tuning"), Screen(quiet=True))


@pytest.fixture
def job(workshop: Workshop) -> Job:
    return workshop.job(Outcome(workshop.model(), Compression(), 0), 0)


def options(tune: str) -> TuneOptions:
    return TuneOptions(steps=2, lr=1.0, batch_size=8, tune=tune)


def judged(monkeypatch: pytest.MonkeyPatch, values: Mapping[float, float]) -> tuple[list[Any], Callable[..., None]]:
    """A training that writes its rate into the bias, and a select split that judges it so. Returns what was seen."""
    seen: list[Any] = []

    def train(trial: Job, chosen: TuneOptions) -> None:
        seen.append((chosen.lr, chosen.tune, weights_digest(trial.model.net)))
        trial.train("stage", chosen)
        with torch.no_grad():
            trial.model.net.head.bias.fill_(chosen.lr)  # type: ignore[union-attr, operator]

    def value(trial: Job) -> float:
        return values[round(trial.model.net.head.bias[0].item(), 6)]  # type: ignore[union-attr, index, arg-type]

    monkeypatch.setattr(Job, "evaluate_select", value)
    return seen, train


@pytest.mark.parametrize(
    ("values", "best"),
    [((1.0, 3.0, 2.0), 0.02), ((3.0, 3.0, 1.0), 0.01), ((1.0, 2.0, 2.0), 0.02), ((0.0, 0.0, 0.5), 0.03)],
)
def test_the_best_on_select_stays(
    job: Job, monkeypatch: pytest.MonkeyPatch, values: tuple[float, ...], best: float
) -> None:
    rates = (0.01, 0.02, 0.03)
    seen, train = judged(monkeypatch, dict(zip(rates, values, strict=True)))
    start = weights_digest(job.model.net)
    tuned(job, "stage", options("0.01,2e-2,0.03"), train)
    assert seen == [(rate, "", start) for rate in rates]
    assert job.model.net.head.bias[0].item() == pytest.approx(best)  # type: ignore[union-attr, index, arg-type]
    assert (job.changes.state.steps, job.changes.state.samples_seen, job.changes.state.trained) == (2, 16, True)
    log = job.changes.state.log["stage"]
    assert (log["n_tuned"], log["lr"]) == (3, best)
    assert log["select"] == dict(zip(("0.01", "2e-2", "0.03"), values, strict=True))
    assert len(log["loss"]) == 2
    assert job.changes.state.n_tuned == 3
    assert [p.name for p in (job.here.folder / "checkpoint").iterdir()] == ["stage-tuned"]


def test_where_lower_is_better_the_lowest_stays(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job.task, "metrics", {job.task.metric: "lower"})
    _, train = judged(monkeypatch, {0.01: 2.0, 0.02: 1.0, 0.03: 3.0})
    tuned(job, "stage", options("0.01,0.02,0.03"), train)
    assert job.changes.state.log["stage"]["lr"] == 0.02


def test_without_rates_the_job_itself_is_trained(job: Job) -> None:
    tuned(job, "stage", options(""), lambda own, chosen: own.train("stage", chosen) if own is job else None)
    assert (job.changes.state.steps, job.changes.state.n_tuned) == (2, 1)


def test_the_select_split_decides(job: Job) -> None:
    """The value that is told is that of the weights that stay."""
    tuned(job, "stage", options("1e-3,3e-2"), lambda trial, chosen: trial.train("stage", chosen))
    log = job.changes.state.log["stage"]
    assert len(job.data.samples("select")) == 8
    assert job.evaluate_select() == max(log["select"].values())


def test_samples_of_report_are_refused_in_select(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    roles = {"train": "train", "select": "val", "report": "val"}
    monkeypatch.setattr(type(job.task), "roles", classmethod(lambda cls: roles))
    with pytest.raises(UserError, match="samples of the report split val"):
        tuned(job, "stage", options("1e-3,3e-2"), lambda trial, chosen: trial.train("stage", chosen))


def test_a_rate_that_diverges_loses(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    _, plain = judged(monkeypatch, {0.01: 1.0, 0.02: 5.0, 0.03: 0.5})

    def train(trial: Job, chosen: TuneOptions) -> None:
        if chosen.lr == 0.02:
            raise Diverged("at step 0")
        plain(trial, chosen)

    tuned(job, "stage", options("0.02,0.01,0.03"), train)
    log = job.changes.state.log["stage"]
    assert (log["lr"], log["select"]) == (0.01, {"0.02": None, "0.01": 1.0, "0.03": 0.5})


def test_rates_that_all_diverge_end_the_run(job: Job) -> None:
    def train(trial: Job, chosen: TuneOptions) -> None:
        raise Diverged("at step 0")

    with pytest.raises(Diverged, match=r"not finite at any of tune=0\.1,0\.2: try lower"):
        tuned(job, "stage", options("0.1,0.2"), train)


def test_another_start_is_not_taken_for_the_interrupted_one(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, train = judged(monkeypatch, {0.01: 1.0, 0.02: 2.0})
    tuned(job, "stage", options("0.01,0.02"), train)
    tuned(job, "stage", options("0.01,0.02"), train)
    assert len(seen) == 4, "the first tuning left other weights"


@pytest.mark.parametrize(
    ("tune", "sentence"),
    [
        ("1e-3,5e-4,2e-4,1e-4", "at most 3 different learning rates: every method is tuned alike"),
        ("1e-3,0.001", "at most 3 different learning rates"),
        ("fast", "should be learning rates above 0 like 1e-3,5e-4"),
        ("1e-3,", "should be learning rates above 0"),
        ("0,1e-3", "should be learning rates above 0"),
        ("nan", "should be learning rates above 0"),
    ],
)
def test_what_is_no_short_list_of_rates_is_refused(tune: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        resolve({"task": "imagenet", "method": "dense+finetune", "tune": tune})
