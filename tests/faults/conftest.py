"""One workspace and one warm server for the whole suite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.lives import Place, place_in


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with place_in(tmp_path_factory.mktemp("faults")) as found:
        yield found


@pytest.fixture
def runs(place: Place, tmp_path: Path) -> Path:
    """A folder of runs that is not there yet."""
    return tmp_path / "runs"
