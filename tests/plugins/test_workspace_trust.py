"""Oracle: git's rule for a repository of another user, and the words that TOML and the file system refuse."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.lab import method_file
from vlbench.cell.resolve import resolve
from vlbench.errors import UserError
from vlbench.plugins import table as tables
from vlbench.plugins import workspace as spaces
from vlbench.plugins.table import forget, table


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "vlbench.toml").write_text("")
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "mine.py").write_text(method_file("mine"))
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    monkeypatch.delenv(spaces.ALLOWED, raising=False)
    monkeypatch.setenv(spaces.ALLOWED, "")
    forget()
    yield tmp_path
    forget()


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who runs the command is another user than who owns the files."""
    monkeypatch.setattr(os, "geteuid", lambda: 61234)


@pytest.mark.usefixtures("stranger")
def test_a_workspace_of_another_user_is_refused_until_it_is_allowed(box: Path) -> None:
    with pytest.raises(UserError, match="belongs to another user") as told:
        table("methods")
    assert f"--workspace {box}" in str(told.value)
    spaces.allow(box)
    assert "mine" in table("methods").entries


def test_one_plug_in_of_another_user_is_refused(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, theirs = Path.lstat, box / "methods" / "mine.py"
    monkeypatch.setattr(Path, "lstat", lambda self: SimpleNamespace(st_uid=61234) if self == theirs else real(self))
    with pytest.raises(UserError, match=r"mine\.py belongs to another user"):
        table("methods")


@pytest.mark.parametrize("name", ["_helper.py", "cards.json", "inner/deep.py"])
def test_a_helper_or_a_file_of_cards_of_another_user_is_refused(
    name: str, box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plug-in of the user's own imports or reads it."""
    theirs, real = box / "methods" / name, Path.lstat
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("")
    monkeypatch.setattr(Path, "lstat", lambda self: SimpleNamespace(st_uid=61234) if self == theirs else real(self))
    with pytest.raises(UserError, match=f"{theirs.name} belongs to another user"):
        table("methods")


def test_allowing_a_folder_without_a_workspace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no vlbench"):
        spaces.allow(tmp_path / "nowhere")


def test_code_of_a_workspace_is_announced_once(
    box: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(box / "cache"))
    assert "mine" in table("methods").entries
    assert capsys.readouterr().err == ""  # a list runs nothing
    for _ in range(2):
        forget()
        table("methods").get("mine").load()
    assert capsys.readouterr().err.count(f"plug-ins of {box} are run as code") == 1


def test_no_card_of_a_workspace_takes_a_built_ins_place(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = table("models")
    first = real.get("deit-small")
    theirs = replace(first, name="aaa", built_in=False, facts={**first.facts, "name": "aaa"})
    mixed = replace(real, entries={"aaa": theirs, **real.entries})
    monkeypatch.setattr("vlbench.cell.resolve.table", lambda kind: mixed if kind == "models" else tables.table(kind))
    assert resolve({"task": "imagenet", "suite": "full", "method": "dense"}).model.name == "deit-small"


def test_a_pipe_among_plug_ins_is_not_waited_for(box: Path) -> None:
    os.mkfifo(box / "methods" / "pipe.py")
    assert "mine" in table("methods").entries


@pytest.mark.parametrize(
    "value", ["~nobody-of-that-name/x", "a" * 300, "/".join(["b" * 200] * 30), r"a\u0000b"], ids=lambda v: v[:6]
)
def test_a_root_that_no_folder_can_have_is_named(box: Path, value: str) -> None:
    (box / "vlbench.toml").write_text(f'[roots]\nimagenet = "{value}"\n')
    with pytest.raises(UserError, match=r"vlbench\.toml: imagenet"):
        spaces.workspace()


@pytest.mark.parametrize("value", ["[" * 5000, "9" * 5000], ids=lambda v: v[:3])
def test_toml_nested_without_end_or_a_number_without_end_is_one_sentence(box: Path, value: str) -> None:
    (box / "vlbench.toml").write_text(f"roots = {value}")
    with pytest.raises(UserError, match="cannot be read as TOML"):
        spaces.workspace()


def test_a_current_folder_that_is_gone_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(UserError, match="the current folder is gone"):
        spaces.workspace()
