"""The state of the code is another one where a file of it changed, and the same where none did."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.lab import method_file
from vlbench.plugins import state
from vlbench.plugins.state import SETTLED, code_state
from vlbench.plugins.table import forget


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of the package, inside a workspace with one method."""
    (tmp_path / "vlbench.toml").write_text("")
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "mine.py").write_text(method_file("mine"))
    folder = tmp_path / "package"
    (folder / "room" / "__pycache__").mkdir(parents=True)
    (folder / "__init__.py").write_text("__version__ = '1'\n")
    (folder / "room" / "a.py").write_text("A = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(state, "package_folders", lambda: [folder])
    forget()
    return folder


def test_a_file_that_changed_is_seen_though_its_size_and_date_are_the_old_ones(package: Path) -> None:
    file = package / "room" / "a.py"
    before, status = code_state().digest, file.stat()
    file.write_text("A = 2\n")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert code_state().digest != before


@pytest.mark.parametrize("name", ["room/b.py", "b.json"])
def test_a_new_file_of_code_is_seen(package: Path, name: str) -> None:
    before = code_state().digest
    (package / name).write_text("{}")
    assert code_state().digest != before


def test_what_is_no_code_does_not_matter(package: Path) -> None:
    before = code_state().digest
    (package / "room" / "__pycache__" / "a.py").write_text("")
    (package / "notes.md").write_text("")
    assert code_state().digest == before


def test_a_stranger_that_changed_is_seen(package: Path) -> None:
    before = code_state().digest
    (package.parent / "methods" / "mine.py").write_text(method_file("mine") + "# more\n")
    forget()
    assert code_state().digest != before


def test_files_that_have_just_changed_are_not_settled(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not code_state().settled
    newest = max(file.stat().st_ctime_ns for file in package.rglob("*.py"))
    monkeypatch.setattr(state.time, "time_ns", lambda: newest + SETTLED + 1)
    assert code_state().settled
