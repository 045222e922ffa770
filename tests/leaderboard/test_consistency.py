"""Committed results that were edited by hand. Oracle: the intact results, in which one number is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.leaderboard.factory import board
from vlbench.errors import UserError
from vlbench.leaderboard.rows import load_results
from vlbench.plugins.workspace import boards_folder
from vlbench.publishing.regenerate import check, write
from vlbench.records.record import read_record, write_record


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for r in board():
        write_record(tmp_path / "results" / "mini" / f"{r.cell}.json", r)
    return tmp_path / "results"


def edited(results: Path, method: str, part: str, **changes: Any) -> str:
    """Change one number of the method's first result; the name of its file."""
    file = next(f for f in sorted(results.rglob("*.json")) if read_record(f).method == method)
    old = read_record(file)
    value = getattr(old, part)
    new = {**value, **changes} if isinstance(value, dict) else value.model_copy(update=changes)
    write_record(file, old.model_copy(update={part: new}))
    return file.name


@pytest.mark.parametrize(
    ("method", "part", "changes", "why"),
    [
        ("upop", "metrics", {"accuracy": 99.0}, "accuracy is 99.0 among its metrics"),
        ("upop", "interval", {"value": 79.0}, "79.0 with its interval"),
        ("upop", "interval", {"low": 99.0}, "is not within its interval"),
        ("upop", "vs_dense", {"low": 9.0}, "is not within its interval"),
        (
            "upop",
            "vs_dense",
            {"delta": -1.0, "low": -2.0, "high": 0.0},
            "the difference to the dense model is -6 by their scores",
        ),
        ("dense", "metrics", {"accuracy": 10.0}, "accuracy is 10.0 among its metrics"),
    ],
)
def test_an_edited_number_is_refused_with_its_file(results, method, part, changes, why):
    write(results, results.parent)
    name = edited(results, method, part, **changes)
    with pytest.raises(UserError, match=name) as told:
        check(results, results.parent)
    assert why in str(told.value)


def test_a_dense_model_that_was_edited_whole_no_longer_fits_its_rows(results):
    edited(results, "dense", "metrics", accuracy=50.0)
    edited(results, "dense", "interval", value=50.0, low=49.0, high=51.0)
    with pytest.raises(UserError, match=r"from the dense model, which has 50\.0"):
        load_results(results)


def test_what_is_committed_fits():
    assert load_results(boards_folder() / "results")
