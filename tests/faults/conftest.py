"""One workspace and one warm server for the whole suite."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.lives import Place, place_in


@pytest.fixture(scope="session")
def place() -> Iterator[Place]:
    """In a folder that others may read: a test is another user."""
    folder = Path(tempfile.mkdtemp(prefix="vlbench-faults-"))
    folder.chmod(0o755)
    try:
        with place_in(folder) as found:
            yield found
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def runs(place: Place, tmp_path: Path) -> Path:
    """A folder of runs that is not there yet."""
    return tmp_path / "runs"
