"""Oracle: a marker that the plug-in's file writes when it is imported."""

from __future__ import annotations

import pytest

from tests.lab import Lab
from vlbench.leaderboard import scales

TASK = '''
from pathlib import Path
Path(__file__).with_name("ran").touch()
from vlbench.task import Task, task

@task("mine", title="Mine", capability="classify", metric="loss", version=1)
class Mine(Task):
    """Mine."""
    metrics = {"loss": "lower"}
    titles = {"loss": "my loss"}
    bounds = (0.0, 10.0)
'''


def test_a_board_asks_a_strangers_task_without_importing_it(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    file = lab.plug("tasks/mine.py", TASK)
    for cached in (scales.titled, scales.is_higher, scales.bounds_of):
        cached.cache_clear()
    assert scales.titled("mine", "loss") == "my loss"
    assert not scales.is_higher("mine", "loss")
    assert scales.bounds_of("mine") == (0.0, 10.0)
    assert lab("list", "tasks").code == 0
    assert not file.with_name("ran").exists()
    for cached in (scales.titled, scales.is_higher, scales.bounds_of):
        cached.cache_clear()
