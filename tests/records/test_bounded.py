"""Oracle: statsmodels' Wilson interval, coverage by simulation, and what a table may print: 0 to 100, never nothing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from tests.leaderboard.factory import record
from vlbench.leaderboard.rows import rows
from vlbench.leaderboard.scales import bounds_of
from vlbench.leaderboard.tables import IDENTICAL, difference
from vlbench.records.record import Interval
from vlbench.records.statistics import bounded, interval, wilson


@pytest.mark.parametrize(("right", "count"), [(0, 10), (1, 40), (7, 9), (25, 25), (500, 1000)])
def test_wilsons_interval_is_statsmodels(right: int, count: int) -> None:
    theirs = proportion_confint(right, count, 0.05, "wilson")
    assert wilson(right / count, count, float(stats.norm.ppf(0.975))) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("value", [0.0, 100.0])
@pytest.mark.parametrize("count", [2, 12, 1000])
def test_none_and_all_right_have_an_interval_inside_the_scale(value: float, count: int) -> None:
    spread = bounded(interval([value] * count, [""] * count), 0.0, 100.0)
    assert 0 <= spread.low <= value <= spread.high <= 100
    assert spread.high - spread.low > 0.3
    clustered = bounded(interval([value] * count, [str(i // 2) for i in range(count)]), 0.0, 100.0)
    assert clustered.clusters == count // 2
    if count > 2:  # fewer clusters, less is known
        assert clustered.high - clustered.low > spread.high - spread.low
    else:  # one cluster tells nothing
        assert clustered.high == clustered.low


def test_an_interval_that_stays_inside_is_what_it_was() -> None:
    """Committed numbers do not move, nor does one that is exact away from the ends (all pairs half right)."""
    for values in ([0.0, 100.0] * 50, [0.0, 100.0] * 30 + [100.0] * 50):
        spread = interval(values, [""] * len(values))
        assert bounded(spread, 0.0, 100.0) == spread
    half = interval([0.0, 100.0] * 4, [str(i // 2) for i in range(8)])
    assert bounded(half, 0.0, 100.0) == half
    assert half.low == half.high == 50


def test_a_bootstraps_interval_is_cut_at_the_end() -> None:
    spread = Interval(value=1.0, low=-0.5, high=4.0, se=1.0, clusters=40)
    assert bounded(spread, 0.0, 100.0) == spread.model_copy(update={"low": 0.0})
    assert bounded(spread, -10.0, 100.0) == spread


@pytest.mark.parametrize(("share", "size"), [(0.02, 1), (0.98, 1), (0.03, 4)])
def test_its_coverage_near_the_ends(share: float, size: int) -> None:
    """100 clusters: where the plain interval covers 85 to 88 %, this one 93 or more."""
    random, count, covered, plain = np.random.default_rng(1), 100, 0, 0
    groups = [str(i // size) for i in range(count * size)]
    for _ in range(600):
        if size == 1:
            values = 100.0 * (random.random(count) < share)
        else:
            rates = random.beta(share, 1 - share, count)
            values = 100.0 * (random.random((count, size)) < rates[:, None]).ravel()
        spread = interval(values, groups)
        inside = bounded(spread, 0.0, 100.0)
        covered += inside.low <= 100 * share <= inside.high
        plain += spread.low <= 100 * share <= spread.high
    assert covered >= 0.92 * 600
    assert covered > plain


def test_no_row_leaves_its_tasks_scale() -> None:
    spread = {"low": -3.0, "high": 9.0, "value": 3.0, "se": 3.0, "clusters": 50}
    (row,) = rows([record("magnitude", sparsity=0.5, interval=Interval(**spread))])
    assert row.low is not None
    assert row.high is not None
    assert 0 < row.low < 3 < row.high < 100
    assert bounds_of("coco_caption") == (0.0, 1000.0)
    assert bounds_of("mme") == (0.0, 2000.0)
    assert bounds_of("nowhere") is None


def test_models_that_score_the_same_are_told_so() -> None:
    assert difference(0.0, 0.0, 0.0, 1) == f"0.0 {IDENTICAL}"
    assert difference(0.0, -1.0, 1.0, 1) == "0.0 [-1.0, 1.0]"
    assert difference(None, None, None, 1) == ""
    assert difference(2.0, 2.0, 2.0, 1) == "+2.0 [2.0, 2.0]"
