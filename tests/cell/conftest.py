"""A workspace of its own, and its data in the place of a mini world."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import make_data, make_weights, method_file, write_toml
from vlbench.mini.world import MARKER, list_files, worlds_folder
from vlbench.plugins.table import forget, table


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A workspace with data, weights and a method of its own."""
    make_data(tmp_path / "data")
    make_weights(tmp_path / "weights")
    write_toml(tmp_path, {"imagenet": tmp_path / "data"})
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "mine.py").write_text(method_file("mine"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VLBENCH_DATA", raising=False)
    forget()
    yield tmp_path
    forget()


@pytest.fixture
def mini_world(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's data in the place of the mini world."""
    monkeypatch.setenv("VLBENCH_CACHE", str(box / "cache"))
    shutil.copytree(box / "data", worlds_folder() / "imagenet")
    (worlds_folder() / "imagenet" / MARKER).write_text(table("tasks").get("imagenet").load().mini_world().digest)
    list_files(worlds_folder() / "imagenet")
