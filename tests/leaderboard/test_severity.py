"""format=severity against a table written by hand: rows of one method by strength, and what they keep."""

from __future__ import annotations

from typing import Any

import pytest

from tests.leaderboard.factory import record
from vlbench.disk.storage import digest
from vlbench.errors import UserError
from vlbench.leaderboard.rows import rows_of
from vlbench.leaderboard.severity import severity_text
from vlbench.records.record import Record


def at(perturb: str, right: int, **changes: Any) -> Record:
    """100 samples, of which so many are right."""
    evaluation = {"precision": "fp32", **({"perturb": perturb} if perturb else {})}
    values = [1.0] * right + [0.0] * (100 - right)
    return record(values=values, evaluation=evaluation, split_digest=digest(perturb), **changes)


def cells(text: str) -> list[list[str]]:
    """Of each line of a table, the values without their intervals."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.split(" [")[0] for cell in line.strip("| ").split(" | ")] for line in lines]


def test_a_row_for_each_method_by_strength() -> None:
    """(60 + 40) / 2 of 80 are 62.5 %; a method that lacks a strength, or its clean row, keeps nothing that is known."""
    half = {"method": "magnitude", "sparsity": 0.5, "pattern": "unstructured", "vs_dense": None}
    records = [at("", 80), at("jpeg:1", 60), at("jpeg:10", 40), at("", 50, **half), at("jpeg:1", 25, **half)]
    header, _, dense, pruned = cells(severity_text(rows_of(records)))
    assert header == ["method", "sparsity", "clean", "1", "10", "kept"]
    assert dense == ["dense", "0.0", "80.0", "60.0", "40.0", "62.5 %"]
    assert pruned[:5] == ["magnitude", "0.5", "50.0", "25.0", "not run"]
    assert "%" not in pruned[-1]


def test_every_kind_has_a_table_and_clean_rows_alone_have_none() -> None:
    text = severity_text(
        rows_of([at("", 80), at("jpeg:3", 60), at("typos:0.1+jpeg:3", 50), at("typos:0.5+jpeg:1", 40)])
    )
    assert [line.rsplit(" / ", 1)[1] for line in text.splitlines() if line.startswith("###")] == [
        "jpeg, accuracy",
        "typos+jpeg, accuracy",
    ]
    assert cells(text)[3][3:5] == ["0.1+3", "0.5+1"]
    with pytest.raises(UserError, match="run cells with perturb="):
        severity_text(rows_of([at("", 80)]))
