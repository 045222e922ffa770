"""The contract of import directions: it holds, and a deliberate wrong import breaks it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("importlinter", reason="needs import-linter (extra dev)")

ROOT = Path(__file__).resolve().parents[1]


def lint(checkout: Path) -> subprocess.CompletedProcess[str]:
    program = "from importlinter.cli import lint_imports_command as command; command()"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache"], cwd=checkout, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(checkout)},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("file", "line", "told"),
    [
        ("disk/paths.py", "from ..cell.spec import Spec", "vlbench.disk is not allowed to import vlbench.cell"),
        (
            "records/flags.py",
            "def late() -> None:\n    from ..run.flags import flags_of",
            "vlbench.records is not allowed to import vlbench.run",
        ),
        ("nn/attend.py", "from .beam import beam_search", "No cycles are allowed in vlbench.nn"),
    ],
)
def test_an_import_that_runs_back_up_is_refused(tmp_path: Path, file: str, line: str, told: str) -> None:
    shutil.copytree(ROOT / "vlbench", tmp_path / "vlbench", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    if "beam" in line:
        with (tmp_path / "vlbench" / "nn" / "beam.py").open("a") as stream:
            stream.write("\nfrom .attend import Shared\n")
    with (tmp_path / "vlbench" / file).open("a") as stream:
        stream.write(f"\n{line}\n")
    found = lint(tmp_path)
    assert found.returncode == 1
    assert told in " ".join(found.stdout.split())
