"""SIGTERM with a grace period, a worker that is lost in the middle of its cell, two commands for one cell."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import pytest

from tests.faults.lives import TRAINED, Place, final_files, half_written
from vlbench.machine.stopping import STOPPED

pytestmark = pytest.mark.faults
TIMES = max(1, int(os.environ.get("VLBENCH_FAULTS", "6")) // 8)
SEED = int(os.environ.get("VLBENCH_FAULTS_SEED", "20"))
NEVER = 1e6  # seconds between two saved states
STEPS = int(TRAINED["finetune.steps"])  # of the search, too


@pytest.mark.parametrize("stage", ["upop_search", "finetune"])
def test_sigterm_saves_what_is_being_trained_and_the_same_command_goes_on(place: Place, runs: Path, stage: str) -> None:
    """No state is saved by the clock here, so that what is there is what SIGTERM has saved."""
    draw, calm = random.Random(f"{SEED} {stage}"), place.undisturbed("upop")
    for number in range(TIMES):
        folder, step = runs / str(number), draw.randint(1, STEPS - 1)
        life = place.live("upop", folder, every=NEVER, stop_at=[stage, step])
        assert (life.code, life.stage) == (STOPPED, stage), life.said
        assert life.said.splitlines()[-1] == "vlbench: stopped by SIGTERM; the same command goes on from here."
        assert not list(folder.rglob("lease.json"))
        assert not half_written(folder)
        (meta,) = folder.glob(f"*-upop-*/checkpoint/{stage}/meta.json")
        assert json.loads(meta.read_text())["step"] == step
        assert place.live("upop", folder).code == 0
        assert final_files(folder) == final_files(calm)


def test_sigterm_at_a_random_moment_leaves_at_once(place: Place, runs: Path) -> None:
    draw, calm = random.Random(SEED), place.undisturbed("wanda")
    for _ in range(TIMES):
        life = place.live("wanda", runs, after=draw.uniform(0.2, place.calm["wanda"].seconds), signal=signal.SIGTERM)
        assert life.code in (0, STOPPED, -signal.SIGTERM), life.said  # the last: it had not begun to listen
        assert "Traceback" not in life.said
        assert not half_written(runs)
    assert place.live("wanda", runs).code == 0
    assert final_files(runs) == final_files(calm)


def test_a_cell_goes_on_after_its_worker_was_lost(place: Place, runs: Path) -> None:
    """Of two commands for one cell the one that works is killed: the other, which waits, takes over at once."""
    calm = place.undisturbed("magnitude+finetune")
    worker = {"kill_at": (r"magnitude.*finetune\.tmp/\.meta", 9)}
    first, second = place.lives("magnitude+finetune", runs, worker, {"once": "finetune"})
    assert (first.code, second.code) == (-signal.SIGKILL, 0), second.said
    assert final_files(runs) == final_files(calm)


def test_of_two_at_once_one_works_and_both_end_well(place: Place, runs: Path) -> None:
    calm = place.undisturbed("magnitude+finetune")
    lives = place.lives("magnitude+finetune", runs, {}, {})
    assert [life.code for life in lives] == [0, 0], [life.said for life in lives]
    assert final_files(runs) == final_files(calm)
