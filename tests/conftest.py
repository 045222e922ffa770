"""What several tests need."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.lab import Lab, workspace
from tests.simulated import register

register()

BESIDE = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of oracles and real data: VLBENCH_SHARED, or `shared` beside the checkout."""
    folder = Path(os.environ.get("VLBENCH_SHARED") or BESIDE)
    if not folder.is_dir():
        pytest.skip("needs ../shared (oracles and real data), which is not beside this checkout")
    return folder


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Lab]:
    """A workspace for commands on a tiny ImageNet: 18 training images, a tower of width 16 with 64 neurons."""
    with workspace(tmp_path, monkeypatch, capsys) as made:
        yield made


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in other processes of a test, to the last bit: another number of threads, another order of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
