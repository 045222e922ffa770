"""How far cells are and how long they take, and `vlbench status`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from vlbench.disk.storage import write_json
from vlbench.errors import UserError
from vlbench.plugins.workspace import package_folder
from vlbench.records.record import read_record
from vlbench.sweep.executor import log_file
from vlbench.sweep.state import Brief, Runs, Times, brief, kind_of
from vlbench.sweep.status import duration, print_status, rows_of

RESULTS = package_folder("leaderboards") / "results" / "mini"


@pytest.fixture
def result() -> dict[str, Any]:
    """A published result."""
    file = next(RESULTS.glob("mini-imagenet-*-wanda-0.5-s0-*.json"))
    return dict(json.loads(file.read_text()))


def put(runs: Path, cell: str, result: dict[str, Any], **changes: Any) -> Path:
    file = runs / cell / "result.json"
    write_json(file, {**result, **changes})
    return file


def failed(runs: Path, cell: str, text: str = "begun\nfailed: why\n") -> None:
    log = log_file(runs, cell)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(text)


# What a result says --------------------------------------------------------------------------------------------------


def test_every_published_result_says_the_same_in_brief_and_in_full(tmp_path: Path) -> None:
    for number, file in enumerate(sorted(RESULTS.glob("*.json"))[:40]):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "result.json").write_bytes(file.read_bytes())
        record = read_record(file)
        assert brief(tmp_path / str(number)) == Brief(record.complete, record.provenance["seconds"])


def test_a_text_that_looks_like_the_answer_is_none(tmp_path: Path, result: dict[str, Any]) -> None:
    """In a label, in an option, and one level deeper."""
    trap = '\n "complete": true,\n'
    identity = {**result["identity"], "complete": True, "seconds": 1}
    put(tmp_path, "a", result, complete=False, flags=[trap], label=trap, identity=identity)
    assert brief(tmp_path / "a") == Brief(False, result["provenance"]["seconds"])


def test_another_layout_is_read_in_full(tmp_path: Path, result: dict[str, Any]) -> None:
    put(tmp_path, "a", result).write_text(json.dumps({**result, "complete": False}, sort_keys=True))
    assert brief(tmp_path / "a") == Brief(False, result["provenance"]["seconds"])


@pytest.mark.parametrize("length", [0, 1, 40, 3000, -1, -3])
def test_a_truncated_result_is_never_done(tmp_path: Path, result: dict[str, Any], length: int) -> None:
    file = put(tmp_path, "a", result)
    file.write_bytes(file.read_bytes()[:length])
    if length == -1:  # only the line end is gone
        assert Runs.read(tmp_path).state("a") == "done"
    else:
        with pytest.raises(UserError, match=r"a/result\.json is damaged"):
            Runs.read(tmp_path)


def test_a_result_of_a_newer_schema_is_told_in_one_sentence(tmp_path: Path, result: dict[str, Any]) -> None:
    put(tmp_path, "a", result, schema_version=99)
    with pytest.raises(UserError, match=r"is of schema 99, this vlbench reads up to .*: update vlbench") as told:
        Runs.read(tmp_path)
    assert len(str(told.value).splitlines()) == 1


# States --------------------------------------------------------------------------------------------------------------


def state(runs: Path, cell: str = "cell") -> str:
    return Runs.read(runs).state(cell)


def test_states(tmp_path: Path, result: dict[str, Any]) -> None:
    folder = tmp_path / "cell"
    assert state(tmp_path) == "to do"
    assert Runs.read(tmp_path / "nowhere").state("cell") == "to do"
    folder.mkdir()
    assert state(tmp_path) == "to do"
    (folder / "cell.json").write_text("{}")
    assert state(tmp_path) == "started"
    failed(tmp_path, "cell", "failed: an old attempt\nbegun again\n")
    assert state(tmp_path) == "started"
    failed(tmp_path, "cell")
    assert state(tmp_path) == "failed"
    (folder / "lease.json").write_text("{}")
    assert state(tmp_path) == "running"
    os.utime(folder / "lease.json", (time.time() - 3600,) * 2)
    assert state(tmp_path) == "failed"
    put(tmp_path, "cell", result, complete=False)
    assert state(tmp_path) == "incomplete"
    put(tmp_path, "cell", result)
    assert state(tmp_path) == "done"


def test_the_end_of_a_long_log_is_enough(tmp_path: Path) -> None:
    failed(tmp_path, "cell", "x" * 50_000 + "\nfailed: at last\n")
    assert Runs.read(tmp_path).reason("cell") == "at last"


# Times ---------------------------------------------------------------------------------------------------------------


def times(tmp_path: Path, result: dict[str, Any], boards: Path, **seconds: float) -> Times:
    for cell, value in seconds.items():
        put(tmp_path, cell.replace("_", "-"), result, provenance={**result["provenance"], "seconds": value})
    return Times(Runs.read(tmp_path), boards)


def test_the_nearest_cells_tell_how_long_one_takes(tmp_path: Path, result: dict[str, Any]) -> None:
    told = {"m_t_n_upop_0.5_s0_aa": 100.0, "m_t_n_upop_0.5_s1_ab": 300.0, "m_t_n_upop_0.5_s2_ac": 110.0}
    found = times(tmp_path, result, tmp_path / "none", **{**told, "m_t_n_magnitude_0.5_ad": 4.0, "m_u_n_dense_ae": 2.0})
    assert found.seconds("m-t-n-upop-0.5-s7-zz") == 110, "the median of its kind, whatever the seed"
    assert found.seconds("m-t-n-upop-0.75-s0-zz") == 110, "of its method"
    assert found.seconds("m-t-n-wanda-0.5-zz") == 105, "of its task and model"
    assert found.seconds("m-u-n-wanda-0.5-zz") == 2
    assert found.seconds("full-t-n-dense-zz") is None


def test_the_published_boards_are_asked_where_nothing_was_run_here(tmp_path: Path, result: dict[str, Any]) -> None:
    boards = tmp_path / "boards"
    (boards / "mini").mkdir(parents=True)
    write_json(boards / "mini" / "m-t-n-upop-0.5-s0-aa.json", result)
    runs = tmp_path / "runs"
    runs.mkdir()
    found = times(runs, result, boards, **{"m_t_n_wanda_0.5_bb": 7.0})
    assert found.seconds("m-t-n-upop-0.5-s1-zz") == result["provenance"]["seconds"]
    assert found.seconds("m-t-n-wanda-0.5-zz") == 7
    assert found.seconds("m-t-n-dense-zz") == 7, "what is as near is asked here first"


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        ("mini-vqav2-blip-vqa-mini-dense-fe90", "mini-vqav2-blip-vqa-mini-dense"),
        ("mini-imagenet-deit-mini-upop-0.5-s10-fe90", "mini-imagenet-deit-mini-upop-0.5"),
    ],
)
def test_a_kind_is_the_name_without_identity_and_seed(cell: str, kind: str) -> None:
    assert kind_of(cell) == kind


# vlbench status ------------------------------------------------------------------------------------------------------


def running(runs: Path, cell: str, since: float) -> None:
    """By another machine, that has just given a sign of life."""
    (runs / cell).mkdir(parents=True)
    lease = {"machine": "node7 boot ns", "pid": 12, "started": "1", "token": "t", "since": time.time() - since}
    (runs / cell / "lease.json").write_text(json.dumps(lease))


def a_sweep(tmp_path: Path, result: dict[str, Any]) -> list[str]:
    times(tmp_path, result, tmp_path, **{"q_t_n_upop_0.5_s0_aa": 100.0})
    running(tmp_path, "q-t-n-upop-0.5-s1-bb", 40)
    running(tmp_path, "q-t-n-upop-0.5-s2-cc", 10)
    failed(tmp_path, "q-t-n-upop-0.5-s3-dd")
    provenance = {**result["provenance"], "seconds": 100.0}
    put(tmp_path, "q-t-n-upop-0.5-s4-ee", result, complete=False, provenance=provenance)
    return [f"q-t-n-upop-0.5-s{n}-{chr(97 + n) * 2}" for n in range(6)]


def test_status_tells_who_works_why_it_failed_and_the_time_left(
    tmp_path: Path, result: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    cells = a_sweep(tmp_path, result)
    states = {row.cell: row.state for row in rows_of(cells, tmp_path)}
    assert list(states.values()) == ["done", "running", "running", "failed", "incomplete", "to do"]
    print_status(cells, tmp_path, json=False)
    text = capsys.readouterr().out
    assert "process 12 on node7 for 40 s, about 60 s left" in text
    assert f"failed      {cells[3]}\n  why\n  log: {log_file(tmp_path, cells[3])}\n" in text
    assert "6 cells: 1 done, 2 running, 1 failed, 1 incomplete, 1 to do" in text
    # (60 + 90 of the running ones + 100 of the failed one, which runs again, + 100) / 2 at a time
    assert "about 3 min left, 2 at a time" in text
    assert cells[0] not in text, "done cells are counted"
    print_status(cells, tmp_path, json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["counts"] == {"done": 1, "running": 2, "failed": 1, "incomplete": 1, "to do": 1}
    assert told["left_seconds"] == pytest.approx(175, abs=2)
    assert told["cells"][3] == {
        "cell": cells[3], "state": "failed", "left": 100.0, "reason": "why", "log": str(log_file(tmp_path, cells[3])),
    }  # fmt: skip


def test_without_words_all_that_is_there(tmp_path: Path, result: dict[str, Any]) -> None:
    """Also a cell that failed before it had a folder; no other folder that happens to lie there."""
    cells = a_sweep(tmp_path, result)
    (tmp_path / "notes").mkdir()
    assert [row.cell for row in rows_of(None, tmp_path)] == sorted(cells[:5])


def test_no_cell_is_divided(tmp_path: Path, result: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    times(tmp_path, result, tmp_path, **{"q_t_n_upop_aa": 1000.0, "q_u_n_dense_ab": 1.0})
    for number in range(4):
        running(tmp_path, f"q-u-n-dense-{number}", 0)
    cells = ["q-t-n-upop-zz", *(f"q-u-n-dense-{number}" for number in range(4))]
    print_status(cells, tmp_path, json=True)
    assert json.loads(capsys.readouterr().out)["left_seconds"] == 1000


def test_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_status(None, tmp_path / "nowhere", json=False)
    assert capsys.readouterr().out == "0 cells: nothing here\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 s"), (100, "2 min"), (3600, "60 min"), (7200, "2.0 h"), (2e5, "2.3 days")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
