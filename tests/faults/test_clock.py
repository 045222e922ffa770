"""A wall clock that jumps by days, forwards and backwards: no number changes, and no live holder loses its lease."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.faults.lives import Place, final_files
from vlbench.disk import lease as module

pytestmark = pytest.mark.faults


def test_a_clock_that_jumps_changes_no_file(place: Place, runs: Path) -> None:
    calm = place.undisturbed("magnitude+finetune")
    lives = place.lives("magnitude+finetune", runs, {"clock": 1}, {"clock": 2})
    assert [life.code for life in lives] == [0, 0], [life.said for life in lives]
    assert sum("another vlbench works" in life.said for life in lives) <= 1
    assert final_files(runs) == final_files(calm)


@pytest.mark.parametrize("days", [-30, 30])
def test_a_live_holder_on_this_machine_keeps_its_lease(
    tmp_path: Path, days: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has beaten its heart a moment ago, by a clock that has been set since; or it slept with the machine."""
    file = tmp_path / "cell" / "lease.json"
    file.parent.mkdir()
    pid = os.getpid()
    told = {"machine": module._machine(), "pid": pid, "started": module._started(pid), "token": "other"}
    file.write_text(json.dumps(told))
    now = time.time
    monkeypatch.setattr(module.time, "time", lambda: now() + 86400 * days)
    looks = []

    def done() -> bool:
        looks.append(1)
        return len(looks) > 3

    with module.lease(tmp_path / "cell", done, lambda text: None) as mine:
        assert not mine
    assert json.loads(file.read_text()) == told
