"""Allocation of a structured target."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlbench.errors import UserError
from vlbench.pruning.allocation import unified, uniform


def test_uniform_keeps_the_best_of_every_site() -> None:
    kept = uniform({"a": torch.tensor([3.0, 1.0, 2.0, 0.0]), "b": torch.tensor([0.0, 5.0])}, 0.5)
    assert kept["a"].tolist() == [0, 2]
    assert kept["b"].tolist() == [1]


def test_uniform_leaves_one_unit_and_rounds_widths() -> None:
    assert len(uniform({"a": torch.arange(4.0)}, 0.99)["a"]) == 1
    assert len(uniform({"a": torch.arange(64.0)}, 0.3, multiple_of=8)["a"]) == 48


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 0.8))
def test_unified_meets_the_budget_within_half_of_the_dearest_unit(seed: int, fraction: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    importance = {f"s{i}": torch.randn(n, generator=rng) for i, n in enumerate((16, 16, 128, 64))}
    cost = {"s0": 12.0, "s1": 12.0, "s2": 1.0, "s3": 3.0}
    total = sum(cost[n] * len(v) for n, v in importance.items())
    kept = unified(importance, cost, fraction)
    removed = sum(cost[n] * (len(importance[n]) - len(k)) for n, k in kept.items())
    assert abs(removed - fraction * total) <= 12.0
    for name, score in importance.items():
        assert int(score.argmax()) in kept[name].tolist()
        assert kept[name].tolist() == sorted(kept[name].tolist())


def test_unified_ranks_over_all_sites() -> None:
    kept = unified({"a": torch.tensor([0.1, 0.2, 9.0]), "b": torch.tensor([5.0, 6.0, 7.0])}, {"a": 1, "b": 1}, 1 / 3)
    assert kept["a"].tolist() == [2]
    assert kept["b"].tolist() == [0, 1, 2]


def test_unified_keeps_the_best_unit_of_a_site_that_ranks_last() -> None:
    kept = unified({"a": torch.tensor([0.1, 0.3, 0.2]), "b": torch.tensor([5.0, 6.0, 7.0])}, {"a": 1, "b": 1}, 0.5)
    assert kept["a"].tolist() == [1]
    assert kept["b"].tolist() == [1, 2]


def test_unreachable_target_names_the_maximum() -> None:
    with pytest.raises(UserError, match=r"at most 0\.6667"):
        unified({"a": torch.arange(3.0), "b": torch.arange(3.0)}, {"a": 1, "b": 1}, 0.999)
