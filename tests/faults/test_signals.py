"""SIGTERM with a grace period, a worker that is lost in the middle of its cell, two commands for one cell."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import pytest

from tests.faults.lives import Place, final_files, half_written
from vlbench.stopping import STOPPED

pytestmark = pytest.mark.faults
TIMES = max(2, int(os.environ.get("VLBENCH_FAULTS", "8")) // 8)
SEED = int(os.environ.get("VLBENCH_FAULTS_SEED", "20"))
NEVER = 1e6  # seconds between two saved states


def test_sigterm_saves_what_is_being_trained_and_the_same_command_goes_on(place: Place, runs: Path) -> None:
    """No state is saved by the clock here, so that what is there is what SIGTERM has saved."""
    draw, calm = random.Random(SEED), place.undisturbed("upop")
    stages = []
    for _ in range(40):  # most of the times are of the search and the finetuning, which begin after the baseline
        after = draw.uniform(0.3, 1.0) * place.calm["upop"].seconds
        life = place.live("upop", runs, every=NEVER, after=after, signal=signal.SIGTERM)
        assert life.code in (0, STOPPED), life.said
        assert "Traceback" not in life.said
        if life.code == 0:
            break
        assert life.said.splitlines()[-1] == "vlbench: stopped by SIGTERM; the same command goes on from here."
        assert not list(runs.rglob("lease.json"))
        assert not half_written(runs)
        if life.stage in ("upop_search", "finetune"):
            (meta,) = runs.glob(f"*-upop-*/checkpoint/{life.stage}/meta.json")
            stages.append(json.loads(meta.read_text())["step"])
            assert stages[-1] > 0
        if len(stages) >= TIMES:
            break
    assert place.live("upop", runs).code == 0
    assert final_files(runs) == final_files(calm)


def test_a_cell_goes_on_after_its_worker_was_lost(place: Place, runs: Path) -> None:
    """Of two commands for one cell the one that works is killed: the other, which waits, takes over at once."""
    calm = place.undisturbed("magnitude+finetune")
    half = place.calm["magnitude+finetune"].seconds / 2
    first, second = place.lives("magnitude+finetune", runs, {"after": half}, {})
    assert (first.code, second.code) == (-signal.SIGKILL, 0), second.said
    assert second.seconds < 30, "a dead holder on this machine need not be waited for"
    assert final_files(runs) == final_files(calm)


def test_of_two_at_once_one_works_and_both_end_well(place: Place, runs: Path) -> None:
    calm = place.undisturbed("magnitude+finetune")
    lives = place.lives("magnitude+finetune", runs, {}, {})
    assert [life.code for life in lives] == [0, 0], [life.said for life in lives]
    assert final_files(runs) == final_files(calm)
