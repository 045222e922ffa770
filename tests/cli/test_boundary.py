"""Oracle: what a person must read where a terminal, a folder or a name is not as a program expects."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import Lab, method_file

ROOT = Path(__file__).parents[2]
LONG = "x" * 3000


def command(*words: str, folder: Path = ROOT, **env: str) -> subprocess.CompletedProcess[bytes]:
    """`vlbench WORDS` in a process of its own, which alone has a terminal's encoding."""
    told = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run([sys.executable, "-m", "vlbench", *words], cwd=folder, env=told, capture_output=True)


def test_an_ascii_terminal_is_told_what_it_can_show() -> None:
    """Oracle: the same table in UTF-8, whose signs have a plain form."""
    words = ("table", "task=imagenet", "suite=mini")
    plain, rich = (command(*words, PYTHONIOENCODING=coding) for coding in ("ascii", "utf-8"))
    assert plain.returncode == rich.returncode == 0, plain.stderr
    assert "\u00b1" in rich.stdout.decode()
    assert plain.stdout.decode("ascii") == rich.stdout.decode().replace("\u00b1", "+/-")


def test_a_current_folder_that_is_gone_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    script = f"cd {tmp_path / 'gone'} && rmdir {tmp_path / 'gone'} && {sys.executable} -m vlbench run task=imagenet"
    told = subprocess.run(["sh", "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert told.returncode == 2
    assert told.stderr.startswith(b"vlbench: the current folder is gone")


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "suite=full", "task=imagenet", "model=deit-mini", f"checkpoint={LONG}"),
        ("page", LONG), ("compare", LONG, "dense"), ("time", LONG), ("export", LONG, "there"),
        ("sweep", "--file", LONG),
        ("run", "task=imagenet", "--runs", LONG), ("score", LONG, "file=x.json"), ("status", "--file", LONG),
    ],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_a_name_that_no_file_can_have(lab: Lab, arguments: tuple[str, ...]) -> None:
    assert len(lab.refused(*arguments)) < 5 * len(LONG)


@pytest.mark.parametrize(("words", "sentence"), [
    (("task=",), "task= is missing. Known: "),
    (("method=",), "method= is empty"),
    (("method=magnitude+",), "names a link that is empty"),
])  # fmt: skip
def test_a_word_without_a_value(lab: Lab, words: tuple[str, ...], sentence: str) -> None:
    assert lab.refused_run(*words).startswith(sentence) or sentence in lab.refused_run(*words)


def test_a_plug_ins_name_of_300_letters(lab: Lab) -> None:
    """It would be a folder's name that no file system has: the file is named as broken, and the others work."""
    lab.plug("methods/long.py", method_file("m" * 300))
    assert "longer than 64 characters" in lab.refused("new", "method", "m" * 300)
    assert "longer than 64 characters" in lab.refused_run("method=" + "m" * 300)
    assert lab("list", "methods").code == 0
