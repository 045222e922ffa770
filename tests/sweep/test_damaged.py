"""Finished cells whose files are not what the run noted: told by status and by every table, one bit at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.leaderboard.factory import record
from vlbench.disk import checksums
from vlbench.disk.storage import json_text
from vlbench.errors import UserError
from vlbench.leaderboard.local import readable
from vlbench.plots.runs import open_run
from vlbench.records.record import read_local, write_record
from vlbench.sweep.state import Runs
from vlbench.sweep.status import rows_of


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two finished cells as the runner leaves them."""
    for one in (record(), record("magnitude", sparsity=0.5)):
        folder = tmp_path / "runs" / one.cell
        folder.mkdir(parents=True)
        (folder / "predictions.jsonl").write_text("{}\n")
        checksums.note(folder, "predictions.jsonl")
        checksums.announce(folder, "result.json", json_text(one.model_dump(mode="json")))
        write_record(folder / "result.json", one)
    return tmp_path / "runs"


@pytest.mark.parametrize("name", ["result.json", "predictions.jsonl", "sums.json"])
def test_status_sees_a_changed_file_of_a_finished_cell(runs: Path, name: str) -> None:
    assert [row.state for row in rows_of(None, runs)] == ["done", "done"]
    folder = next(runs.glob("*magnitude*"))
    text = (folder / name).read_text()
    (folder / name).write_text(
        text.replace('"wins"', "") + " " if name != "result.json" else text.replace("0.5", "0.6")
    )
    if name == "sums.json":
        (folder / name).write_text(text.replace('"sums"', '"sumz"'))
    rows = {row.cell: row for row in rows_of(None, runs)}
    assert rows[folder.name].state == "damaged"
    assert name in rows[folder.name].reason
    assert [row.state for row in rows.values() if row.cell != folder.name] == ["done"]


def test_an_edited_record_is_in_no_table_and_on_no_page(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = next(runs.glob("*magnitude*"))
    text = (folder / "result.json").read_text()
    (folder / "result.json").write_text(text.replace('"removed": 750000', '"removed": 750001'))
    assert [one.method for one in readable(runs)] == ["dense"]
    assert "result.json is damaged or of another cell" in capsys.readouterr().err
    for look in (read_local, open_run):
        with pytest.raises(UserError, match=r"result\.json is damaged or of another cell"):
            look(folder)


def test_a_result_that_cannot_be_read_is_a_row_of_status_and_an_error_of_a_sweep(runs: Path) -> None:
    folder = next(runs.glob("*magnitude*"))
    (folder / "result.json").write_text("{")
    assert Runs.read(runs, telling=True).state(folder.name) == "damaged"
    with pytest.raises(UserError, match=r"result\.json is damaged"):
        Runs.read(runs)
