"""Two rows on the same samples: the difference, its interval, its p, and whether it is within a margin.

A row is its score tables, one a seed. Of a mean, scores are averaged over seeds sample by sample, so that what the
samples have in common cancels in the difference; its standard error is the cluster sandwich. Of a corpus metric, the
same clusters are drawn for every table and the metric is averaged over seeds in every draw. Either way the variance of
the seeds' own values, s^2/n of each row with several, is added (Satterthwaite's degrees of freedom), because other
seeds would give other means; as in `row_interval` this is too much rather than too little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..records.statistics import (
    Aggregate,
    Array,
    centred,
    checked,
    cluster_sums,
    clustered_mean,
    draws_p,
    over_seeds,
    quantiles,
    resample,
    satterthwaite,
    t_interval,
    two_sided,
)


class Difference(NamedTuple):
    """b - a in percent points. low, high: 95 % interval, None where one cluster allows none. test: how p was made.
    p_worse: one-sided, H0: b is worse than a by the margin or more; None where no margin was given."""

    delta: float
    low: float | None
    high: float | None
    p: float
    test: str
    p_worse: float | None


def of_means(a: Sequence[Array], b: Sequence[Array], clusters: Sequence[str], margin: float | None) -> Difference:
    """a, b: per seed the samples' values (n,) in percent. McNemar's exact test gives p where no samples are clustered
    and both rows are one cell of zeros and hundreds; its interval is that of t."""
    d, group = checked(np.mean(b, axis=0) - np.mean(a, axis=0), clusters)
    count = int(group.max()) + 1
    delta, se = clustered_mean(d, group)
    test = "t" if count == len(d) else "t, clusters"
    over_seeds = _by_t(delta, se * se, [[float(v.mean()) for v in row] for row in (a, b)], count, margin, test)
    if count == len(d) and len(a) == len(b) == 1 and all(np.isin(row[0], (0.0, 100.0)).all() for row in (a, b)):
        return over_seeds._replace(p=mcnemar(a[0] > 0, b[0] > 0), test="McNemar")
    return over_seeds


def of_corpus(
    a: Sequence[Array], b: Sequence[Array], clusters: Sequence[str], metric: Aggregate, margin: float | None,
    B: int = 10_000, seed: int = 2024,
) -> Difference:  # fmt: skip
    """a, b: per seed the samples' statistics (n, k). The same draws as statistics.bootstrap's, so that a comparison
    with the dense model equals the board's."""
    sums, width = cluster_sums([*b, *a], clusters), b[0].shape[1]
    count = len(sums)

    def values(x: Array) -> Array:
        """(tables, draws)"""
        return np.stack([metric(x[:, i : i + width]) for i in range(0, x.shape[1], width)])

    def differences(means: Array) -> Array:
        gone: Array = means[: len(b)].mean(axis=0) - means[len(b) :].mean(axis=0)
        return gone

    whole = values(sums.sum(axis=0, keepdims=True))
    delta = float(differences(whole)[0])
    draws = centred(np.concatenate([differences(values(x)) for x in resample(sums, B, seed)]), delta, count)
    if len(a) > 1 or len(b) > 1:
        seeds = [[float(v) for v in row[:, 0]] for row in (whole[len(b) :], whole[: len(b)])]
        return _by_t(delta, float(draws.var(ddof=1)), seeds, count, margin, "bootstrap")
    low, high = quantiles(draws) if count > 1 else (None, None)
    worse = None if margin is None else max((1 + int((draws <= -margin).sum())) / (B + 1), 2.0**-count)
    return Difference(delta, low, high, draws_p(draws, count), "bootstrap", worse)


def _by_t(
    delta: float, variance: float, values: Sequence[Sequence[float]], clusters: int, margin: float | None, test: str
) -> Difference:
    """variance: of the sampling of clusters. values: of each row's seeds. test: where the variance is from."""
    seeds = [over_seeds(row) for row in values]
    parts = [(s.spread**2 / s.n, s.n - 1) for s in seeds if s.spread is not None]
    se, df = satterthwaite([(variance, clusters - 1), *parts]) if clusters > 1 else (0.0, 1.0)
    low, high = t_interval(delta, se, df) if clusters > 1 else (None, None)
    worse = None if margin is None else _worse(delta + margin, se, df, clusters)
    return Difference(delta, low, high, two_sided(delta, se, df, clusters), f"{test}, seeds" if parts else test, worse)


def _worse(above: float, se: float, df: float, clusters: int) -> float:
    """One-sided p of `above` <= 0; of the exact sign-flip test where nothing varies."""
    from scipy.special import stdtr

    if se == 0:
        return 2.0**-clusters if above > 0 else 1.0
    return float(stdtr(df, -above / se))


def mcnemar(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Exact two-sided p of which samples (n,) two models have right (McNemar, Psychometrika 1947)."""
    from scipy.special import bdtr

    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    return min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p of tests that are read together (Holm, Scand. J. Statistics 1979): the chance of one false claim or
    more among them stays below 5 % where those below 0.05 are claimed."""
    p_values = np.asarray(p, dtype=np.float64)
    order = np.argsort(p_values)
    left = np.arange(len(order), 0, -1)  # tests that are not yet rejected: the smallest p is multiplied by all
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(left * p_values[order]), 1.0)
    return [float(x) for x in adjusted]
