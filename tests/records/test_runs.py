"""Runs by their names: the folder that is meant, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlbench.errors import UserError
from vlbench.records.runs import run_of
from vlbench.sweep.state import Runs


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name in ("a-dense-1", "a-upop-2", "a-upop-3"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "cell.json").write_text("{}")
    return tmp_path / "runs"


def test_a_name_its_beginning_or_a_folder(runs: Path) -> None:
    assert run_of("a-upop-2", runs) == runs / "a-upop-2"
    assert run_of("a-d", runs) == runs / "a-dense-1"
    assert run_of(str(runs / "a-upop-3"), Path("elsewhere")) == runs / "a-upop-3"
    for name, sentence in (("a-u", "begins the names of a-upop-2, a-upop-3"), ("b", "there is no run 'b'")):
        with pytest.raises(UserError, match=sentence):
            run_of(name, runs)


def test_a_sentence_names_no_more_runs_than_can_be_read(tmp_path: Path) -> None:
    for number in range(60):
        (tmp_path / f"r{number:02}").mkdir()
        (tmp_path / f"r{number:02}" / "cell.json").write_text("{}")
    with pytest.raises(UserError, match=r"r39 and 20 more\.$"):
        run_of("nothing", tmp_path)


def test_a_link_is_nobodys_run(runs: Path, tmp_path: Path) -> None:
    """What it leads to is neither read nor written, by whatever name it is asked for."""
    (runs / "a-upop-2").rename(tmp_path / "elsewhere")
    (runs / "a-upop-2").symlink_to(tmp_path / "elsewhere")
    for name in ("a-upop-2", str(runs / "a-upop-2")):
        with pytest.raises(UserError, match=r"is a link to .*elsewhere"):
            run_of(name, runs)
    read = Runs.read(runs)
    assert read.state("a-upop-2") == "damaged"
    assert "is a link to" in read.damaged["a-upop-2"]
    assert (read.state("a-dense-1"), read.state("a-upop-3")) == ("started", "started")
