"""Boards are the same bytes everywhere, and what differs is told by row and column."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.leaderboard.factory import board, changed, record
from vlbench.errors import UserError
from vlbench.leaderboard.rows import rows
from vlbench.plugins.workspace import boards_folder
from vlbench.publishing.regenerate import boards, check, own_boards, write, write_own
from vlbench.records.record import read_record, write_record

DIGEST = """
import contextlib, hashlib, locale, sys
from pathlib import Path
with contextlib.suppress(locale.Error):  # a machine need not have them all
    locale.setlocale(locale.LC_ALL, "")
from vlbench.publishing.regenerate import boards
texts = sorted((str(name), text) for name, text in boards(Path(sys.argv[1])).items())
print(hashlib.sha256(repr(texts).encode()).hexdigest())
"""


@pytest.fixture
def results(tmp_path: Path) -> Path:
    records = [*board(), *(changed(r, task="nlvr2") for r in board()[:3])]
    for r in records:
        write_record(tmp_path / "leaderboards" / "results" / r.suite / f"{r.cell}.json", r)
    return tmp_path / "leaderboards" / "results"


# --- boards -----------------------------------------------------------------------------------------


def test_one_board_for_each_suite_and_task(results):
    names = {name.as_posix() for name in boards(results)}
    assert names == {"mini/nlvr2.csv", "mini/nlvr2.md", "mini/vqav2.csv", "mini/vqav2.md", "mini/index.html"}
    assert boards(results / "nothing") == {}


def test_written_boards_are_found_identical(results):
    assert len(write(results, results.parent)) == 5
    assert check(results, results.parent) == []
    assert write(results, results.parent) == []


def test_check_shows_a_changed_number(results):
    write(results, results.parent)
    path = results.parent / "mini" / "vqav2.csv"
    path.write_text(path.read_text().replace("accuracy,", "accuracy,9", 1))
    dense = next(row for row in rows(board()) if row.dense)
    value = f"{dense.value:.4f}"
    assert check(results, results.parent) == [
        f"mini/vqav2.csv: row blip-mini dense 0.0000 ({dense.config}): value '9{value}' -> '{value}'"
    ]
    assert write(results, results.parent) == [Path("mini/vqav2.csv")]


def test_check_shows_rows_that_are_missing_surplus_or_moved(results):
    write(results, results.parent)
    path = results.parent / "mini" / "vqav2.csv"
    head, *lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([head, *lines[:-1]]))
    assert [line.split(" (")[0] for line in check(results, results.parent)] == [
        "mini/vqav2.csv: no row of blip-mini magnitude 0.7500"
    ]
    surplus = lines[0].rsplit(",", 1)[0] + ",000000000000\n"
    path.write_text("".join([head, *lines, surplus]))
    assert check(results, results.parent) == [
        "mini/vqav2.csv: no result gives the row blip-mini dense 0.0000 (000000000000)"
    ]
    path.write_text("".join([head, *lines[::-1]]))
    assert check(results, results.parent) == ["mini/vqav2.csv: its rows are in another order"]


def test_check_shows_a_line_of_the_page_and_no_more_than_a_screenful(results):
    write(results, results.parent)
    page = results.parent / "mini" / "vqav2.md"
    page.write_text(page.read_text().replace("# vqav2", "# mine", 1))
    assert check(results, results.parent) == ["mini/vqav2.md: line 1: '# mine, suite mini' -> '# vqav2, suite mini'"]
    page.write_text("nothing\n")
    lines = check(results, results.parent)
    assert len(lines) == 21
    assert lines[-1].startswith("mini/vqav2.md: and ")


def test_a_csv_that_is_none_is_shown_line_by_line(results):
    write(results, results.parent)
    path = results.parent / "mini" / "vqav2.csv"
    path.write_text('suite,task\n"open')
    assert check(results, results.parent)[0].startswith("mini/vqav2.csv: line 1: 'suite,task' -> ")


def test_check_shows_other_line_ends(results):
    write(results, results.parent)
    path = results.parent / "mini" / "vqav2.csv"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    lines = check(results, results.parent)
    assert all(line.startswith("mini/vqav2.csv: line ") and "\\r' -> '" in line for line in lines)
    assert len(lines) == len(board()) - 2 + 1  # a line a row, of which one has three seeds, and the header


def test_missing_and_stray_boards_are_reported_and_mended(results):
    out = results.parent
    write(results, out)
    (out / "mini" / "vqav2.csv").rename(out / "mini" / "old.csv")
    (out / "mini" / "vqav2.md").rename(out / "mini" / "old.md")
    (out / "mini" / "README.md").write_text("Written by hand.\n")
    (out / "published").mkdir()
    (out / "published" / "upop.csv").write_text("model,value\n")
    assert check(results, out) == [
        "mini/vqav2.csv is missing",
        "mini/vqav2.md is missing",
        "mini/old.csv has no results",
        "mini/old.md has no results",
    ]
    write(results, out)
    assert check(results, out) == []
    assert (out / "mini" / "README.md").exists()
    assert (out / "published" / "upop.csv").exists()


def test_a_result_cannot_write_outside_the_boards(results):
    write_record(results / "mini" / "evil.json", changed(record(), task="../../evil"))
    with pytest.raises(UserError, match="cannot be part of a file name"):
        boards(results)


def test_bytes_do_not_depend_on_the_process(results, tmp_path):
    """Numbers with commas, another alphabet's lower case, and files that are ASCII unless one says otherwise."""
    write_record(results / "mini" / "ü.json", record("obd", sparsity=0.5, options={"note": "Iıß ☃"}))
    again = tmp_path / "again"
    for i, path in enumerate(sorted(results.rglob("*.json"), reverse=True)):
        write_record(again / f"{i:02d}.json", read_record(path))
    texts = sorted((str(name), text) for name, text in boards(results).items())
    wanted = hashlib.sha256(repr(texts).encode()).hexdigest()
    settings = [
        ("0", "C", "UTC"),
        ("1", "C.UTF-8", "Asia/Tokyo"),
        ("2", "de_DE.ISO-8859-1", "UTC"),
        ("3", "tr_TR.UTF-8", "America/New_York"),
    ]
    for (seed, locale, zone), folder in zip(settings, (results, again) * 2, strict=True):
        env = {**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": locale, "TZ": zone}
        env |= {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        command = [sys.executable, "-c", DIGEST, str(folder)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == wanted


def test_own_runs_stand_beside_the_committed_rows_that_they_compare_with(tmp_path: Path) -> None:
    """A cell of ours replaces the committed one, with a star; boards of other tasks are not there."""
    committed = boards_folder() / "results" / "mini"
    mine = next(file for file in sorted(committed.glob("mini-imagenet-deit-mini-magnitude-0.5-*")))
    runs = tmp_path / "runs"
    write_record(runs / mine.stem / "result.json", read_record(mine))
    with pytest.raises(UserError, match=r"no run in .* enters a board"):
        own_boards(tmp_path)
    names = write_own(runs, runs / "boards")
    assert [name.as_posix() for name in names] == ["mini/imagenet.csv", "mini/imagenet.md", "mini/index.html"]
    both = (runs / "boards", committed.parents[1])
    ours, theirs = ((folder / "mini" / "imagenet.csv").read_text().splitlines() for folder in both)
    assert len(ours) > 20
    assert set(ours) <= set(theirs)
    starred = [line for line in (runs / "boards/mini/imagenet.md").read_text().splitlines() if "| * " in line]
    assert len(starred) == 1
    assert "magnitude" in starred[0]
    assert '"* magnitude' in (runs / "boards/mini/index.html").read_text()
    assert write_own(runs, runs / "boards") == []
