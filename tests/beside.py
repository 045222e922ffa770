"""Where recordings and real data lie: in `../shared`, or else the part of them in tests/oracles."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

WANTING = "needs ../shared (oracles and real data), which is not beside this checkout"
SLICE = Path(__file__).resolve().parent
_named = Path(os.environ.get("VLBENCH_SHARED") or SLICE.parents[1] / "shared")
WHOLE = _named.is_dir()
SHARED = _named if WHOLE else SLICE  # a recording that is not in the slice is a file that is not found: see conftest


def there(folder: Path) -> Path:
    """The folder of recordings or data. Skips the test where it is in neither place."""
    if not folder.exists():
        pytest.skip(WANTING)
    return folder


def needs(folder: Path) -> pytest.MarkDecorator:
    """A mark for tests that need a folder."""
    return pytest.mark.skipif(not folder.exists(), reason=WANTING)
