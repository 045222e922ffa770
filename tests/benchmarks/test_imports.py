"""Every benchmark can be started: its imports are there, and it has a main that takes its words from argparse."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

NAMES = sorted(file.stem for file in Path(__file__).parent.glob("*.py") if not file.name.startswith(("test_", "_")))


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_is_imported(name: str) -> None:
    """They moved with the code they measure, which no other test would notice."""
    assert importlib.import_module(f"tests.benchmarks.{name}").__doc__
