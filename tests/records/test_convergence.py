"""The tick or cross: the whole interval lies above chance by a tenth of what the dense model has."""

from __future__ import annotations

from typing import Any

import pytest

from tests.leaderboard.factory import record
from vlbench.records import convergence
from vlbench.records.convergence import chance_of, converged
from vlbench.records.record import Interval, VersusDense, read_record, write_record


def cell(task: str, value: float, dense: float, half: float = 1.0, *, trained: bool = True) -> Any:
    """A record with an interval of value +- half."""
    interval = Interval(value=value, low=value - half, high=value + half, se=half / 2, clusters=9)
    versus = VersusDense(delta=value - dense, low=0, high=0, p=0.5, samples=9, clusters=9)
    return record("upop", task=task, trained=trained, interval=interval, vs_dense=versus)


@pytest.mark.parametrize(
    ("task", "value", "dense", "expected"),
    [
        ("nlvr2", 57.17, 82.48, True),  # UPop at 10x, which the paper counts as converged
        ("nlvr2", 50.9, 82.48, False),
        ("nlvr2", 54.2, 82.48, False),  # 50 + 3.25 is inside the interval
        ("nlvr2", 54.3, 82.48, True),
        ("vqav2", 25.98, 77.4, False),  # "yes" to everything
        ("vqav2", 33.0, 77.4, True),
        ("coco_caption", 14.2, 133.3, False),
        ("coco_caption", 60.7, 133.3, True),
        ("imagenet", 0.1, 79.9, False),
        ("of-a-stranger", 30.0, 80.0, True),
        ("of-a-stranger", 8.9, 80.0, False),
    ],
)
def test_the_rule(task: str, value: float, dense: float, expected: bool) -> None:
    assert converged(cell(task, value, dense)) is expected


def test_a_wide_interval_is_no_evidence() -> None:
    assert converged(cell("nlvr2", 60, 80, half=6.9)) is True
    assert converged(cell("nlvr2", 60, 80, half=7.1)) is False


def test_a_metric_that_falls_as_models_get_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convergence, "chance_of", lambda task: 1000.0)
    assert converged(cell("perplexity", 200.0, 20.0)) is True
    assert converged(cell("perplexity", 905.0, 20.0)) is False


def test_without_training_or_a_dense_result_there_is_no_answer() -> None:
    assert converged(cell("nlvr2", 80, 82, trained=False)) is None
    assert converged(record("upop", trained=True, vs_dense=None)) is None


def test_chance_is_the_tasks() -> None:
    assert [chance_of(t) for t in ("nlvr2", "vqav2", "imagenet", "nowhere")] == [50.0, 25.98, 0.0, 0.0]


def test_one_setting_is_not_written_and_several_are(tmp_path: Any) -> None:
    """Records that came before tuning keep their bytes."""
    plain, tuned = record("upop"), record("upop", n_tuned=3)
    for one in (plain, tuned):
        write_record(tmp_path / "result.json", one)
        assert ('"n_tuned": 3' in (tmp_path / "result.json").read_text()) is (one is tuned)
        assert "n_tuned" in (tmp_path / "result.json").read_text() or one is plain
        assert read_record(tmp_path / "result.json") == one
