"""What several tests need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.beside import SHARED, SLICE, WANTING, WHOLE
from tests.lab import Lab, workspace
from tests.simulated import register

register()


# Fixtures that run commands, train, build wheels or start processes: what stands on them is left out of `make quick`.
COMMANDS = {"lab", "runs", "workshop", "finished", "place", "wheel", "checkout"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if COMMANDS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.commands)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of oracles and real data: VLBENCH_SHARED, or `shared` beside the checkout. Without it, the slice of
    tests/oracles: a test that opens a recording that is not in it is skipped."""
    return SHARED


def _skip_where_the_slice_ends(error: BaseException) -> None:
    if isinstance(error, FileNotFoundError) and not WHOLE:
        file = Path(str(error.filename or error))
        if SLICE in file.parents and file.relative_to(SLICE).parts[0] in ("oracles", "data", "published", "cases"):
            pytest.skip(WANTING)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        _skip_where_the_slice_ends(error)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Its fixtures, of which pytest raises the remembered error again where several tests share one."""
    try:
        yield
    except FileNotFoundError as error:
        _skip_where_the_slice_ends(error)
        raise


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly what was not compared with its recording."""
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if WANTING in str(r.longrepr)]
    if skipped:
        words = f"{len(skipped)} TESTS AGAINST RECORDINGS WERE SKIPPED: {WANTING}"
        terminalreporter.write_sep("!", words, red=True, bold=True)


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
