"""kill -9 at random moments of search, finetuning, calibration, evaluation and writing, then the same command again.

Short by default; VLBENCH_FAULTS=200 is the long form, VLBENCH_FAULTS_SEED repeats a failure.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.faults.lives import Campaign, Place, final_files

pytestmark = pytest.mark.faults
KILLS, SEED = int(os.environ.get("VLBENCH_FAULTS", "16")), int(os.environ.get("VLBENCH_FAULTS_SEED", "20"))


def test_random_kills_leave_no_trace(place: Place) -> None:
    campaign = Campaign(place, SEED)
    campaign.run(KILLS)
    print(campaign.report())
    assert not campaign.failures, "\n".join([campaign.report(), *campaign.failures])
    assert campaign.kills == KILLS


@pytest.mark.parametrize(
    ("method", "stage"),
    [
        ("upop", "upop_search"),
        ("upop", "finetune"),
        ("uniform+odd+finetune", "round"),
        ("uniform+odd+finetune", "finetune"),
    ],
)
def test_a_kill_in_the_middle_of_training_leaves_no_trace(place: Place, runs: Path, method: str, stage: str) -> None:
    """And another in the life after it. Random kills may miss a stage."""
    for number in (5, 3):
        life = place.live(method, runs, kill_at=(rf"{stage}\.tmp/\.meta", number))
        assert (life.code, life.stage) == (-signal.SIGKILL, "writing"), life.said
    assert place.live(method, runs).code == 0
    assert final_files(runs) == final_files(place.undisturbed(method))
