"""Oracles: statsmodels, scipy and the recorded bootstrap (../shared/oracles/metrics/MANIFEST.md, section 7);
simulation for the interval over seeds, which no library has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from vlbench.records import statistics
from vlbench.records.record import Interval, VersusDense
from vlbench.records.statistics import bootstrap, interval, over_seeds, resample, row_interval, row_versus, versus

SERIES = ("binary", "vqa")


@pytest.fixture(scope="module")
def data(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "oracles/metrics/stats/data_a.json").read_text())


@pytest.fixture(scope="module")
def oracle(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "oracles/metrics/stats/results_a.json").read_text())


def images(data: dict[str, Any]) -> list[str]:
    """Padded, so that text sorts as the oracle's integers do (clusters are drawn in sorted order)."""
    return [f"{image:06d}" for image in data["image_id"]]


def statsmodels_se(values: np.ndarray, clusters: list[str]) -> float:
    groups = np.unique(clusters, return_inverse=True)[1]
    fit = sm.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": groups})
    return float(fit.bse[0])


def with_count(values: list[float]) -> np.ndarray:
    return np.stack([np.asarray(values), np.ones(len(values))], axis=1)


def ratio(sums: np.ndarray) -> np.ndarray:
    return sums[:, 0] / sums[:, 1]


# --- one score vector -----------------------------------------------------------------------------


@pytest.mark.parametrize("series", ["binary_a", "binary_b", "vqa_a", "vqa_b"])
def test_clustered_standard_error_is_the_oracles(data, oracle, series):
    found, wanted = interval(data[series], images(data)), oracle["clustered_se"][series]
    assert found.value == pytest.approx(wanted["mean"], abs=1e-12)
    assert found.se == pytest.approx(wanted["statsmodels_cluster_default_correction"], abs=1e-12)
    assert found.clusters == wanted["n_clusters"]
    low, high = stats.t.interval(0.95, found.clusters - 1, found.value, found.se)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-10)


@pytest.mark.parametrize("clusters", [2, 7, 400])
def test_equals_statsmodels_on_uneven_clusters(clusters):
    rng = np.random.default_rng(clusters)
    values, labels = 100 * rng.random(1000), [f"c{i}" for i in rng.integers(0, clusters, 1000)]
    assert interval(values, labels).se == pytest.approx(statsmodels_se(values, labels), rel=1e-12)


def test_without_clusters_the_error_is_the_textbook_one(data, oracle):
    found = interval(data["vqa_a"], [""] * 200)
    assert found.clusters == 200
    assert found.se == pytest.approx(oracle["clustered_se"]["vqa_a"]["se_iid_ddof1"], rel=1e-12)


def test_labelled_and_unlabelled_samples_may_mix():
    values, labels = [1.0, 5.0, 2.0, 4.0, 4.0], ["", "b", "", "a", "b"]
    assert interval(values, labels).se == pytest.approx(statsmodels_se(np.array(values), ["1", "b", "2", "a", "b"]))


@pytest.mark.parametrize("value", [100.0, 0.0, 30.000000000000004])
def test_no_spread_gives_a_point(value):
    found = interval([value] * 7, [""] * 7)
    assert (found.value, found.low, found.high, found.se) == (value, value, value, 0.0)


def test_one_cluster_gives_a_point_and_says_so():
    found = interval([0.0, 100.0, 100.0], ["image"] * 3)
    assert (found.low, found.high, found.se, found.clusters) == (found.value, found.value, 0.0, 1)
    assert versus([1.0, 1.0], [0.0, 1.0], ["image"] * 2).p == 1.0


@pytest.mark.parametrize(("values", "labels"), [([], []), ([1.0], []), ([float("nan"), 1.0], ["", ""])])
def test_nonsense_is_refused(values, labels):
    with pytest.raises(ValueError, match="finite values"):
        interval(values, labels)


# --- a paired difference --------------------------------------------------------------------------


@pytest.mark.parametrize("series", SERIES)
def test_paired_difference_is_the_oracles(data, oracle, series):
    found = versus(data[f"{series}_a"], data[f"{series}_b"], images(data))
    wanted = oracle["clustered_se"][f"diff_{series}"]
    se = wanted["statsmodels_cluster_default_correction"]
    assert found.delta == pytest.approx(wanted["mean"], abs=1e-12)
    assert (found.high - found.low) / 2 == pytest.approx(stats.t(39).ppf(0.975) * se, rel=1e-10)
    assert found.p == pytest.approx(2 * stats.t(39).sf(wanted["mean"] / se), rel=1e-9)
    assert (found.samples, found.clusters) == (200, 40)


@pytest.mark.parametrize("series", SERIES)
def test_without_clusters_it_is_the_paired_t_test(data, oracle, series):
    found, wanted = (
        versus(data[f"{series}_a"], data[f"{series}_b"], [""] * 200),
        oracle["paired_ttest"][series],
    )
    assert found.p == pytest.approx(wanted["scipy_ttest_rel_p"], rel=1e-9)
    assert (found.low, found.high) == pytest.approx((wanted["ci_lower"], wanted["ci_upper"]), rel=1e-9)


def test_equal_models_do_not_differ():
    found = versus([1.0, 0.3, 0.0], [1.0, 0.3, 0.0], [""] * 3)
    assert (found.delta, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_a_constant_difference_has_the_sign_flip_p():
    found = versus([0.9] * 5, [0.6] * 5, [""] * 5)
    assert found.p == 2.0**-4
    assert found.low == found.high == found.delta


def test_differences_that_cancel_within_clusters_are_none():
    found = versus([0.9, 0.0, 0.6, 0.3], [0.6, 0.3, 0.0, 0.9], ["a", "a", "b", "b"])
    assert (found.delta, found.p) == (0.0, 1.0)


# --- bootstrap ------------------------------------------------------------------------------------


@pytest.mark.parametrize("series", SERIES)
def test_bootstrap_follows_the_recorded_protocol(data, oracle, series):
    d = np.subtract(data[f"{series}_a"], data[f"{series}_b"])
    found = bootstrap(with_count(d), None, images(data), ratio)
    wanted = oracle["bootstrap"][f"diff_{series}"]["cluster_images"]
    assert (found.low, found.high) == pytest.approx(tuple(wanted["ci95_percentile"]), abs=1e-12)
    assert found.se == pytest.approx(wanted["se"], rel=1e-12)
    sums = np.zeros((40, 2))
    np.add.at(sums, data["image_id"], with_count(d))
    first = np.concatenate([ratio(chunk) for chunk in resample(sums, 3, 2024)])
    assert first == pytest.approx(wanted["first_3_resample_means"], abs=1e-15)


@pytest.mark.parametrize("series", SERIES)
def test_bootstrap_of_two_models_draws_the_same_clusters(data, oracle, series):
    a, b = (with_count(data[f"{series}_{model}"]) for model in "ab")
    found = bootstrap(a, b, images(data), ratio)
    wanted = oracle["bootstrap"][f"diff_{series}"]["cluster_images"]
    assert (found.low, found.high) == pytest.approx(tuple(wanted["ci95_percentile"]), abs=1e-12)
    # The two tests answer one question, by different approximations.
    assert found.p == pytest.approx(versus(a[:, 0], b[:, 0], images(data)).p, abs=0.02)


def test_draws_do_not_depend_on_the_chunks(monkeypatch):
    sums = np.random.default_rng(0).integers(0, 9, (31, 3)).astype(float)
    whole = np.concatenate(list(resample(sums, 100, 7)))
    monkeypatch.setattr(statistics, "DRAWS_AT_ONCE", 31 * 7)
    assert np.array_equal(np.concatenate(list(resample(sums, 100, 7))), whole)
    index = np.random.default_rng(7).integers(0, 31, size=(100, 31))
    assert np.array_equal(sums[index].sum(axis=1), whole)


def test_bootstrap_edges():
    a, one = with_count([0.1, 0.7, 0.3]), ["image"] * 3
    single = bootstrap(a, None, one, ratio, B=50)
    assert (single.low, single.high, single.se, single.clusters) == (single.value, single.value, 0.0, 1)
    assert bootstrap(a, a * [2, 1], one, ratio, B=50).p == 1.0
    same = bootstrap(a, a, [""] * 3, ratio, B=50)
    assert (same.delta, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="finite number"):
        bootstrap(a, None, one, lambda sums: sums[:, 0] * np.nan, B=50)


def rare_classes(images: int, classes: int = 40) -> np.ndarray:
    """(images, 2 * classes): pixels right and pixels of each class; an image shows three of them."""
    rng = np.random.default_rng(images)
    table = np.zeros((images, 2, classes))
    for image in range(images):
        shown = rng.choice(classes, 3, replace=False)
        table[image, 1, shown] = 100
        table[image, 0, shown] = np.where(shown < 5, 99, rng.integers(0, 10, 3))
    return table.reshape(images, -1)


def mean_ratio(sums: np.ndarray) -> np.ndarray:
    """As mIoU: the mean over the classes that are there at all, and 0 for one that is labelled but never right."""
    right, there = np.split(sums, 2, axis=1)
    return 100 * np.divide(right, there, out=np.zeros_like(right), where=there > 0).sum(axis=1) / right.shape[1]


def test_the_interval_holds_its_own_value_where_resampling_is_biased():
    """Where classes are missing in most resamples, the plain percentile interval excludes the value."""
    table = rare_classes(20)
    draws = np.concatenate([mean_ratio(chunk) for chunk in resample(table, 2000, 2024)])
    found = bootstrap(table, None, [""] * 20, mean_ratio, B=2000)
    assert np.percentile(draws, 97.5) < found.value
    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(np.diff(np.percentile(draws, [2.5, 97.5]))[0], rel=1e-9)
    paired = bootstrap(table, table * 0.5, [""] * 20, mean_ratio, B=2000)
    assert paired.low <= paired.delta <= paired.high


def test_a_small_bias_is_left_alone(data):
    """Below a quarter of a standard error the draws are as they were drawn: the recorded protocol."""
    draws = np.random.default_rng(0).normal(0.2, 1, 4000)
    assert np.array_equal(statistics.centred(draws, 0.0, 9), draws)
    assert statistics.centred(draws, -0.2, 9).mean() == pytest.approx(-0.2, abs=1e-12)


# --- over seeds -----------------------------------------------------------------------------------


def test_spread_is_the_sample_standard_deviation():
    assert over_seeds([80.0, 82.0, 84.0]) == (3, 82.0, 2.0)
    assert over_seeds([80.0]) == (1, 80.0, None)


def test_one_seed_keeps_its_interval():
    alone = Interval(value=80, low=70, high=99, se=1, clusters=9)
    assert row_interval([alone]) is alone
    difference = VersusDense(delta=-1, low=-4, high=0.5, p=0.04, samples=9, clusters=9)
    assert row_versus([difference]) is difference


def test_equal_seeds_keep_the_sampling_error():
    """Three copies of one result are no more evidence than one."""
    rng = np.random.default_rng(0)
    labels = [str(i // 4) for i in range(400)]
    one = interval(rng.random(400), labels)
    many = row_interval([one] * 3)
    assert (many.low, many.high, many.se) == pytest.approx((one.low, one.high, one.se), rel=1e-12)
    difference = versus(rng.random(400), rng.random(400), labels)
    three = row_versus([difference] * 3)
    assert three.model_dump() == pytest.approx(difference.model_dump(), rel=1e-9)


def test_seeds_alone_give_the_t_interval_of_their_values():
    values = [80.0, 81.0, 84.0]
    found = row_interval([Interval(value=v, low=v, high=v, se=0, clusters=50) for v in values])
    wanted = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize(
    ("seeds", "seed_sd", "least"),
    [
        *((seeds, seed_sd, 0.93) for seeds in (3, 5) for seed_sd in (0.0, 0.02, 0.07)),
        *((2, seed_sd, 0.93) for seed_sd in (0.0, 0.02)),
        (2, 0.15, 0.86),  # two seeds four sampling errors apart: as documented
    ],
)
@pytest.mark.parametrize("reaction_sd", [0.0, 0.3], ids=["alike", "each-its-own"])
def test_the_interval_over_seeds_covers_the_truth(seeds, seed_sd, least, reaction_sd):
    """Truth 0.5; 60 images of 4 questions; the sampling error is about 0.037. Where samples react to seeds
    alike the coverage is 95 %; where each reacts in its own way the interval may be too wide, never narrow.
    """
    rng = np.random.default_rng(seeds)
    labels, hits, repeats = [str(i // 4) for i in range(240)], 0, 600
    for _ in range(repeats):
        samples = 0.5 + np.repeat(rng.normal(0, 0.2, 60), 4) + rng.normal(0, 0.4, 240)
        shift = rng.normal(0, seed_sd, (seeds, 1)) + rng.normal(0, reaction_sd, (seeds, 240))
        row = row_interval([interval(samples + s, labels) for s in shift])
        hits += row.low <= 0.5 <= row.high
    assert hits / repeats > least
    if not reaction_sd:
        assert hits / repeats < 0.97


def test_nothing_heavy_is_imported():
    code = (
        "import sys, vlbench.publishing.regenerate, vlbench.leaderboard.tables;"
        "print([m for m in ('torch', 'pandas', 'statsmodels', 'scipy', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
