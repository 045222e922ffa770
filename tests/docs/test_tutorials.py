"""Oracle: what each tutorial promises. It is followed literally in an empty folder: its files are written, its commands
run line by line, and what a reader writes is short."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, TUTORIALS, blocks
from tests.lab import Lab
from vlbench.plugins.table import forget

# Lines of all Python that a reader writes.
LONGEST = {"method": 40, "task": 80, "family": 100, "runtime": 60, "capability": 80}


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lab:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLBENCH_WORKSPACE", str(tmp_path))
    monkeypatch.setenv("VLBENCH_DEVICE", "")
    forget()
    return Lab(tmp_path, monkeypatch, capsys)


@pytest.mark.commands
@pytest.mark.parametrize("name", sorted(LONGEST))
def test_a_tutorial_works_as_it_is_written(name: str, empty: Lab) -> None:
    page = ROOT / "docs" / "extend" / f"{name}.md"
    for block in blocks(page):
        if block.title:
            file = empty.folder / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
        elif block.language == "bash":
            for line in block.lines:
                _follow(empty, line)


def _follow(empty: Lab, line: str) -> None:
    words = shlex.split(line)
    if words[0] == "vlbench":
        runs = sorted(
            path.parent.name for path in empty.folder.glob("runs/*/result.json") if "dense" not in path.parent.name
        )
        result = empty(*[runs[-1] if word == "RUN" else word for word in words[1:]])
        assert result.code == 0, (line, result)
    else:
        assert words[0] == "python", line
        done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (line, done.stderr)


def test_every_tutorial_is_followed_and_short() -> None:
    assert {page.stem for page in TUTORIALS} == LONGEST.keys()
    for page in TUTORIALS:
        lines = [line for block in blocks(page) if block.language == "python" for line in block.lines]
        assert 0 < len(lines) <= LONGEST[page.stem], page.name


def test_the_method_that_is_shown_is_the_one_that_the_scaffold_writes(empty: Lab) -> None:
    assert empty("new", "method", "mine").code == 0
    written = (empty.folder / "methods" / "mine.py").read_text(encoding="utf-8")
    assert [block.text for block in blocks(ROOT / "docs" / "extend" / "method.md") if block.language == "python"] == [
        written
    ]
