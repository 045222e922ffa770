"""vlbench.results(): the CSV's columns as a data frame."""

from __future__ import annotations

import io

import pandas as pd
import pytest

import vlbench
from tests.leaderboard.factory import board, record
from vlbench.errors import UserError
from vlbench.leaderboard import filters as select
from vlbench.leaderboard.rows import COLUMNS, rows
from vlbench.leaderboard.tables import csv_text
from vlbench.records.record import write_record


@pytest.fixture
def place(tmp_path, monkeypatch):
    for r in board():
        write_record(tmp_path / "results" / "mini" / f"{r.cell}.json", r)
    monkeypatch.setattr(select, "boards_folder", lambda: tmp_path)
    return tmp_path


def test_it_holds_what_the_csv_holds(place):
    frame = vlbench.results(place / "runs")
    wanted = pd.read_csv(io.StringIO(csv_text(rows(board()))))
    assert tuple(frame.columns) == (*COLUMNS, "cells", "seed_values", "local")
    for name in ("value", "low", "delta", "sparsity", "nonzero", "macs", "seeds"):
        assert frame[name].astype(float).tolist() == pytest.approx(wanted[name].tolist(), abs=5.1e-5, nan_ok=True)
    for name in ("method", "pattern", "config"):
        assert frame[name].tolist() == wanted[name].tolist()
    upop = frame[frame.method == "upop"].iloc[0]
    assert (upop.seed_values, len(upop.cells.split()), upop.local) == ("0 1 2", 3, False)


def test_other_metrics_are_numbers(place):
    mine = record("obd", sparsity=0.5)
    write_record(place / "results" / "x.json", mine.model_copy(update={"metrics": {**mine.metrics, "top5": 99.5}}))
    assert vlbench.results(place / "runs", method="obd").metrics.tolist() == [{"top5": 99.5}]


def test_types_do_not_depend_on_what_is_measured(place):
    write_record(place / "results" / "x.json", record("obd", sparsity=0.5, macs=None, macs_dense=None))
    whole, part = vlbench.results(place / "runs"), vlbench.results(place / "runs", method="obd")
    assert whole.dtypes.to_dict() == part.dtypes.to_dict()
    assert part.macs.isna().all()


def test_local_rows_are_marked_and_words_narrow_it_down(place):
    mine = record("obd", sparsity=0.5)
    write_record(place / "runs" / "a" / "result.json", mine)
    assert vlbench.results(place / "runs", method="obd").local.tolist() == [True]
    with pytest.raises(UserError, match=r"metod= is not known here\. Did you mean 'method'"):
        vlbench.results(metod="obd")
    with pytest.raises(UserError, match="no results of method=ob"):
        vlbench.results(place / "runs", method="ob")
