"""Oracles: the recorded McNemar and Holm values (../shared/oracles/metrics/stats), scipy, the board's own statistics;
simulation for rows of several seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from vlbench.comparison.compare import CLAIMED
from vlbench.comparison.paired import holm, mcnemar, of_corpus, of_means
from vlbench.records.statistics import bootstrap, versus


@pytest.fixture(scope="module")
def data(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "oracles/metrics/stats/data_a.json").read_text())


@pytest.fixture(scope="module")
def oracle(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "oracles/metrics/stats/results_a.json").read_text())


def percent(values: Any) -> np.ndarray:
    return 100 * np.asarray(values, dtype=np.float64)


def ratio(sums: np.ndarray) -> np.ndarray:
    return 100 * sums[:, 0] / sums[:, 1]


def test_mcnemar_is_the_oracles(data, oracle):
    a, b = (np.asarray(data[f"binary_{m}"], bool) for m in "ab")
    assert mcnemar(a, b) == pytest.approx(oracle["mcnemar"]["exact_p"], rel=1e-9)
    for case in oracle["edge_mcnemar"].values():
        times = np.ravel(case["table_[[11,10],[01,00]]"])
        a, b = np.repeat([1, 1, 0, 0], times) > 0, np.repeat([1, 0, 1, 0], times) > 0
        assert mcnemar(a, b) == pytest.approx(case["exact_p"], rel=1e-9)


def test_holm_is_the_oracles(oracle):
    for told in oracle["multiple"].values():
        assert holm(told["p"]) == pytest.approx(told["holm"]["adjusted"], rel=1e-12)
        assert [p <= CLAIMED for p in holm(told["p"])] == told["holm"]["reject_0.05"]
    assert holm([]) == []


def test_zeros_and_ones_without_clusters_are_mcnemars(data, oracle):
    a, b = percent(data["binary_a"]), percent(data["binary_b"])
    found = of_means([b], [a], [""] * 200, None)
    assert (found.test, found.p) == ("McNemar", pytest.approx(oracle["mcnemar"]["exact_p"], rel=1e-9))
    told = oracle["paired_ttest"]["binary"]
    assert (found.low, found.high) == pytest.approx((100 * told["ci_lower"], 100 * told["ci_upper"]), rel=1e-9)


@pytest.mark.parametrize("series", ["binary", "vqa"])
def test_with_clusters_it_is_the_boards_difference(data, series):
    a, b = percent(data[f"{series}_a"]), percent(data[f"{series}_b"])
    labels = [f"{image:06d}" for image in data["image_id"]]
    found, wanted = of_means([b], [a], labels, None), versus(a, b, labels)
    assert (found.delta, found.low, found.high, found.p) == (wanted.delta, wanted.low, wanted.high, wanted.p)
    assert (found.test, found.p_worse) == ("t, clusters", None)


def test_fractions_without_clusters_are_the_paired_t_test(data, oracle):
    found = of_means([percent(data["vqa_b"])], [percent(data["vqa_a"])], [""] * 200, None)
    assert (found.test, found.p) == ("t", pytest.approx(oracle["paired_ttest"]["vqa"]["scipy_ttest_rel_p"], rel=1e-9))


def test_a_corpus_metric_is_the_boards_bootstrap(data):
    labels = [f"{image:06d}" for image in data["image_id"]]
    a, b = (np.stack([data[f"vqa_{m}"], np.ones(200)], axis=1) for m in "ab")
    found, wanted = of_corpus([b], [a], labels, ratio, 1.0), bootstrap(a, b, labels, ratio)
    assert (found.delta, found.low, found.high, found.p) == (wanted.delta, wanted.low, wanted.high, wanted.p)
    assert found.test == "bootstrap"
    t_test = of_means([100 * b[:, 0]], [100 * a[:, 0]], labels, 1.0)
    assert found.p_worse == pytest.approx(t_test.p_worse, abs=0.02)


def test_non_inferiority_is_the_shifted_one_sided_t_test():
    rng = np.random.default_rng(1)
    a, b = 100 * rng.random(300), 100 * rng.random(300)
    wanted = stats.ttest_1samp(b - a, -2.5, alternative="greater").pvalue
    found = of_means([a], [b], [""] * 300, 2.5)
    assert found.p_worse == pytest.approx(wanted, rel=1e-9)
    assert (found.p_worse < 0.025) is bool(found.low > -2.5), "the one-sided claim agrees with the 95 % interval"


def test_rows_that_agree_everywhere():
    a = percent([1, 0, 1, 1])
    same = of_means([a], [a], ["x", "x", "y", "z"], 1.0)
    assert (same.delta, same.low, same.high, same.p, same.p_worse) == (0.0, 0.0, 0.0, 1.0, 2.0**-3)
    worse = of_means([a + 5], [a], ["x", "x", "y", "z"], 1.0)
    assert (worse.delta, worse.p, worse.p_worse) == (-5.0, 0.25, 1.0)


def test_one_cluster_allows_no_claim():
    rng = np.random.default_rng(0)
    a, b = 100 * rng.random((2, 9))
    for found in (
        of_means([a], [b], ["x"] * 9, 50.0),
        of_corpus([np.c_[a / 100, a * 0 + 1]], [np.c_[b / 100, a * 0 + 1]], ["x"] * 9, ratio, 50.0, B=50),
    ):
        assert (found.low, found.high) == (None, None)
        assert found.p_worse >= 0.5
        assert found.p == 1.0


def test_seeds_that_are_copies_add_nothing():
    rng = np.random.default_rng(2)
    a, b, labels = 100 * rng.random(80), 100 * rng.random(80), [str(i // 4) for i in range(80)]
    one, many = of_means([a], [b], labels, None), of_means([a], [b, b, b], labels, None)
    assert many[:4] == pytest.approx(one[:4], rel=1e-9)
    table = np.stack([a / 100, np.ones(80)], axis=1), np.stack([b / 100, np.ones(80)], axis=1)
    drawn = of_corpus([table[0]], [table[1], table[1]], labels, ratio, None, B=2000)
    assert (drawn.low, drawn.high) == pytest.approx((one.low, one.high), abs=1.5)
    assert drawn.test == "bootstrap, seeds"


@pytest.mark.parametrize("seed_sd", [0.0, 3.0])
def test_the_interval_of_a_difference_over_seeds_covers_the_truth(seed_sd):
    """Truth 0: two rows of three seeds on the same 60 images of 4 questions, whose difficulty they share."""
    rng = np.random.default_rng(5)
    labels, hits, repeats = [str(i // 4) for i in range(240)], 0, 400
    for _ in range(repeats):
        shared = 50 + np.repeat(rng.normal(0, 20, 60), 4)
        rows = [
            [shared + np.repeat(rng.normal(0, 8, 60), 4) / 3 + rng.normal(0, 15, 240) + rng.normal(0, seed_sd)
             for _ in range(3)]
            for _ in range(2)
        ]  # fmt: skip
        found = of_means(*rows, labels, None)
        hits += found.low <= 0 <= found.high
    assert hits / repeats > 0.93
