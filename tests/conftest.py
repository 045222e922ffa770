"""What several tests need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

BESIDE = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of oracles and real data: VLBENCH_SHARED, or `shared` beside the checkout."""
    folder = Path(os.environ.get("VLBENCH_SHARED") or BESIDE)
    if not folder.is_dir():
        pytest.skip("needs ../shared (oracles and real data), which is not beside this checkout")
    return folder
