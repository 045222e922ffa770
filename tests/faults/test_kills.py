"""kill -9 at random moments of search, finetuning, calibration, evaluation and writing, then the same command again.

Short by default; VLBENCH_FAULTS=200 is the long form, VLBENCH_FAULTS_SEED repeats a failure.
"""

from __future__ import annotations

import os

import pytest

from tests.faults.lives import Campaign, Place

pytestmark = pytest.mark.faults
KILLS, SEED = int(os.environ.get("VLBENCH_FAULTS", "16")), int(os.environ.get("VLBENCH_FAULTS_SEED", "20"))


def test_random_kills_leave_no_trace(place: Place) -> None:
    campaign = Campaign(place, SEED)
    campaign.run(KILLS)
    print(campaign.report())
    assert not campaign.failures, "\n".join([campaign.report(), *campaign.failures])
    assert campaign.kills == KILLS
