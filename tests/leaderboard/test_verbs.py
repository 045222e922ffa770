"""leaderboard, compare, table and submit as a user types them: exit codes, one sentence, nothing half-written."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.leaderboard.factory import board, changed, record
from vlbench import cli
from vlbench.leaderboard import filters as select
from vlbench.records.record import write_record
from vlbench.sweep import planning


class Place:
    """A folder with leaderboards/, which is the current one."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self.capsys.readouterr()
        self.monkeypatch.setattr(sys, "argv", ["vlbench", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = self.capsys.readouterr()
        assert "Traceback" not in err
        return int(stopped.value.code or 0), out, err


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Place:
    for r in board():
        write_record(tmp_path / "leaderboards" / "results" / "mini" / f"{r.cell}.json", r)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(select, "boards_folder", lambda: tmp_path / "leaderboards")
    return Place(tmp_path, monkeypatch, capsys)


def test_check_tells_and_write_mends(place: Place) -> None:
    assert place("leaderboard", "--check")[0] == 1
    assert place("leaderboard")[0] == 0
    assert place("leaderboard", "--check")[:2] == (0, "leaderboards are what their results say.\n")
    file = place.folder / "leaderboards" / "mini" / "vqav2.csv"
    file.write_text(file.read_text().replace("magnitude", "wanda", 1))
    code, _, err = place("leaderboard", "--check")
    assert code == 1
    assert "mini/vqav2.csv: row blip-mini magnitude 0.5000 (" in err
    assert "): method 'wanda' -> 'magnitude'" in err


@pytest.mark.parametrize("text", ['{"schema_version": 1, "ce', "[]", '{"schema_version": 7}', "no json", ""])
def test_a_bad_result_is_named_and_check_exits_1(place: Place, text: str) -> None:
    place("leaderboard")
    before = sorted((p, p.read_bytes()) for p in (place.folder / "leaderboards" / "mini").iterdir())
    (place.folder / "leaderboards" / "results" / "mini" / "zz.json").write_text(text)
    for arguments, wanted in ((("leaderboard", "--check"), 1), (("leaderboard",), 2), (("table",), 2)):
        code, _, err = place(*arguments)
        assert (code, "zz.json" in err) == (wanted, True), arguments
    assert before == sorted((p, p.read_bytes()) for p in (place.folder / "leaderboards" / "mini").iterdir())


def test_two_results_of_one_cell_that_differ_are_both_named(place: Place) -> None:
    mine = board()[0]
    other = mine.model_copy(update={"metrics": {**mine.metrics, "accuracy/other": 1.0}})
    write_record(place.folder / "leaderboards" / "results" / "mini" / "zz.json", other)
    code, _, err = place("leaderboard", "--check")
    assert (code, "zz.json" in err, f"{mine.cell}.json" in err) == (1, True, True)


def test_rows_without_costs_and_odd_names_make_boards(place: Place) -> None:
    odd = record("obd", sparsity=0.5, macs=None, macs_dense=None, options={"note": 'a|b <i>x</i>\nnew, "q" ü ☃ =1+1'})
    more = record("obd", sparsity=0.5, options={"note": "plain"})
    for r in (odd, more):
        write_record(place.folder / "leaderboards" / "results" / "mini" / f"{r.cell}.json", r)
    assert place("leaderboard")[0] == 0
    assert place("leaderboard", "--check")[0] == 0
    page = (place.folder / "leaderboards" / "mini" / "vqav2.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("|") and "obd" in line]
    assert len(lines) == 2
    assert {line.replace("\\|", "").count("|") for line in lines} == {11}
    assert "<i>" not in page
    code, out, _ = place("table", "method=obd", "format=latex")
    assert code == 0
    assert " & -- & " in out


def test_a_result_of_a_strange_task_writes_nothing_outside(place: Place) -> None:
    write_record(place.folder / "leaderboards" / "results" / "mini" / "e.json", changed(record(), task="../evil"))
    code, _, err = place("leaderboard", "--check")
    assert code == 1
    assert "cannot be part of a file name" in err
    assert not list(place.folder.rglob("evil*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_one_sentence(place: Place) -> None:
    folder = place.folder / "leaderboards"
    folder.chmod(0o555)
    try:
        code, _, err = place("leaderboard")
    finally:
        folder.chmod(0o755)
    assert (code, "cannot write" in err) == (2, True)


def test_a_file_in_the_place_of_a_folder_is_one_sentence(place: Place) -> None:
    (place.folder / "leaderboards" / "mini").write_text("a file")
    code, _, err = place("leaderboard")
    assert (code, "cannot write" in err, err.count("\n")) == (2, True, 1)


def test_compare_and_table_as_words(place: Place) -> None:
    code, out, _ = place("compare", "dense", "uniform", "task=vqav2", "margin=1")
    assert code == 0
    assert "B is worse" in out
    assert place("compare", "dense", "uniform", "--json")[1].startswith("{")
    code, _, err = place("compare", "dense", "uniform", "marign=1")
    assert (code, "Did you mean 'margin'" in err) == (2, True)
    assert place("table", "method=uniform", "format=csv")[1].count("\n") == 2
    code, _, err = place("table", "uniform")
    assert (code, "takes words like" in err) == (2, True)


def test_a_sweeps_rows_alone(place: Place) -> None:
    """A study's table and pictures: the rows of its cells, by the file that runs them; what is missing is counted."""
    cells = {one.method: one.cell for one in board()}
    wanted = [SimpleNamespace(cell=cell) for cell in (cells["dense"], cells["uniform"], "not-run")]
    place.monkeypatch.setattr(planning, "plan", lambda lines, *progress: wanted)
    (place.folder / "x.sweep").write_text("task=vqav2 method=dense,uniform\n")
    code, out, err = place("table", "--file", "x.sweep", "format=csv")
    assert (code, out.count("\n")) == (0, 3)
    assert err == "left out: 1 of the sweep's 3 cells: not finished, or of other words.\n"
    code, out, err = place("table", "--file", "x.sweep", "method=uniform", "format=csv")
    assert (out.count("\n"), "2 of the sweep's 3" in err) == (2, True)
    wanted[:2] = []
    code, _, err = place("table", "--file", "x.sweep")
    assert (code, "none of the sweep's 1 cells has a result" in err) == (2, True)
    code, _, err = place("table", "--file", "y.sweep")
    assert (code, "y.sweep is no file here" in err) == (2, True)
    code, _, err = place("plot")
    assert (code, "vlbench plot takes runs, words of a board like task=nlvr2, or --file PATH" in err) == (2, True)


def test_submit_without_a_finished_run(place: Place) -> None:
    code, _, err = place("submit", "nothing")
    assert (code, "there is no run 'nothing' in runs" in err) == (2, True)
    for name in ("begun", "neither"):
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, "cell.json").write_text("{}")
    code, _, err = place("submit", "begun")
    assert (code, "is not finished" in err) == (2, True)
    code, out, err = place("submit", "begun", "neither")
    assert (code, out.count("refused: "), "2 of 2 runs" in err) == (1, 2, True)
    code, _, err = place("submit", "upload=up")
    assert (code, "no finished runs in runs" in err) == (2, True)
    write_record(place.folder / "runs" / "made-up" / "result.json", board()[0])
    code, out, err = place("submit", "upload=up")
    assert (code, "refused:" in out, "1 of 1 runs" in err) == (1, True, True)
    assert not (place.folder / "up").exists()
