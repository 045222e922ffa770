"""Masks against Wanda's and magnitude's original code, and the order of ties."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.pruning.toy import pruner
from vlbench.calibration.statistics import Statistics
from vlbench.compression.masks import Keep, PackedMasks, keep_fraction, keep_n_of_m, pack
from vlbench.errors import UserError

PATTERNS = {"u50": 0.5, "u60": 0.6, "u70": 0.7, "2of4": (2, 4), "4of8": (4, 8)}


def keep(score: Tensor, pattern: float | tuple[int, int], group: str, rule: str) -> Tensor:
    if isinstance(pattern, tuple):
        return keep_n_of_m(score, *pattern)
    return keep_fraction(score, pattern, group, rule)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PATTERNS)
def test_magnitude_and_wanda_masks_of_the_originals(shared: Path, name: str) -> None:
    oracle = np.load(shared / "oracles" / "pruners" / f"linear_48x64_{name}.npz")
    weight, inputs = torch.from_numpy(oracle["W"]), torch.from_numpy(oracle["X"])
    found = keep(weight.abs(), PATTERNS[name], "matrix", "<=")
    assert torch.equal(found, torch.from_numpy(oracle["mag_keep"]))
    norm = inputs.square().sum(0).sqrt()  # Wanda: |W_ij| * ||X_j||_2, compared within a row
    found = keep(weight.abs() * norm, PATTERNS[name], "row", "exact")
    assert torch.equal(found, torch.from_numpy(oracle["wanda_keep"]))


@pytest.mark.parametrize("name", PATTERNS)
def test_statistics_scores_and_weights_of_the_originals(shared: Path, name: str) -> None:
    """By the methods' own scores, of 16 samples of 8 tokens: Wanda's scaler row and metric, and what both leave."""
    arrays = np.load(shared / "oracles" / "pruners" / f"linear_48x64_{name}.npz")
    oracle = {key: torch.from_numpy(arrays[key]) for key in arrays.files if key != "meta"}
    seen = Statistics.zeros(64, torch.device("cpu"))
    seen.add(oracle["X"].view(16, 8, 64))
    assert torch.allclose((seen.square_sum / 16).float(), oracle["wanda_scaler_row"], rtol=1e-6)
    sparsity = name.replace("of", ":") if "of" in name else int(name[1:]) / 100
    for method, key in (("wanda", "wanda"), ("magnitude", "mag")):
        one = pruner(method, "wanda-code", sparsity=sparsity)
        score = one.score(oracle["W"], seen)
        if method == "wanda":
            assert torch.allclose(score, oracle["wanda_metric"], rtol=1e-6)
        options = one.options
        mask = Keep(options.fraction, options.group, options.rule, options.n_m)(score)
        assert torch.equal(oracle["W"] * mask, oracle[f"{key}_W"])


def reference(score: Tensor, sparsity: float, group: str) -> Tensor:
    """The plain rule: sort each group by (score, position), drop the first int(size * sparsity)."""
    flat = score if group == "row" else score.reshape(1, -1)
    mask = torch.ones_like(flat, dtype=torch.bool)
    for row in range(len(flat)):
        order = sorted(range(flat.shape[1]), key=lambda i, row=row: (float(flat[row, i]), i))
        mask[row, order[: int(flat.shape[1] * sparsity)]] = False
    return mask.view_as(score)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 12), st.integers(0, 3), st.floats(0.01, 0.99), st.sampled_from(["row", "matrix"])
)
def test_exact_counts_and_ties_from_the_left(rows: int, columns: int, levels: int, sparsity: float, group: str) -> None:
    score = torch.randint(0, levels + 1, (rows, columns), generator=torch.Generator().manual_seed(rows * 31 + columns))
    found = keep_fraction(score.float(), sparsity, group)  # type: ignore[arg-type]
    assert torch.equal(found, reference(score.float(), sparsity, group))


def test_n_of_m_drops_the_left_of_equal_scores() -> None:
    score = torch.tensor([[1.0, 1.0, 1.0, 1.0, 3.0, 2.0, 1.0, 1.0]])
    assert keep_n_of_m(score, 2, 4).tolist() == [[False, False, True, True, True, True, False, False]]


def test_widths_not_divisible_are_refused() -> None:
    with pytest.raises(UserError, match="not divisible by 4"):
        keep_n_of_m(torch.zeros(2, 6), 2, 4)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 4), st.sampled_from([(1, 2), (2, 4), (1, 4), (4, 8), (3, 16)]), st.integers(0, 3)
)
def test_n_of_m_is_the_plain_rule(rows: int, groups: int, pattern: tuple[int, int], levels: int) -> None:
    """Sort each group by (score, column), drop the first m - n."""
    n, m = pattern
    rng = torch.Generator().manual_seed(rows * 31 + groups)
    score = torch.randint(0, levels + 1, (rows, groups * m), generator=rng).float()
    wanted = torch.ones(rows, groups, m, dtype=torch.bool)
    for row in range(rows):
        for group, values in enumerate(score[row].view(groups, m).tolist()):
            wanted[row, group, sorted(range(m), key=lambda i, v=values: (v[i], i))[: m - n]] = False
    assert torch.equal(keep_n_of_m(score, n, m), wanted.view(rows, -1))


def test_precisions_agree() -> None:
    """numpy's partition in single and double precision, torch's kthvalue in half."""
    score = torch.randint(0, 50, (300, 40), generator=torch.Generator().manual_seed(0))
    for group in ("row", "matrix"):
        masks = [keep_fraction(score.to(t), 0.45, group) for t in (torch.float32, torch.float64, torch.bfloat16)]  # type: ignore[arg-type]
        assert all(torch.equal(masks[0], other) for other in masks[1:])


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 5), st.sampled_from([0.3, 0.5, 0.9, (2, 4)]), st.sampled_from(["row", "matrix"]),
    st.sampled_from(["exact", "<=", "<"]),
)  # fmt: skip
def test_what_is_gone_goes_first_and_stays_away(rows: int, quads: int, target: Any, group: Any, rule: Any) -> None:
    """Equal to the plain rule for scores that are lowest where weights are gone, less those weights."""
    rng = torch.Generator().manual_seed(rows * 31 + quads)
    score = torch.rand(rows, 4 * quads, generator=rng) + 1
    gone = torch.rand(rows, 4 * quads, generator=rng) < 0.5
    n_m = target if isinstance(target, tuple) else None
    found = Keep(0.5 if n_m else target, group, rule, n_m, gone)(score)
    plain = keep(score.masked_fill(gone, -1.0), target, group, rule)
    assert torch.equal(found, plain & ~gone)


def test_packed_masks_are_what_was_given() -> None:
    """A bit an entry, shapes of any size; what is read is a copy, and another set stays as it was."""
    given = {name: torch.rand(shape) > 0.5 for name, shape in (("a", (3, 5)), ("b", (16,)), ("c", (0, 4)))}
    masks = PackedMasks(given)
    assert list(masks) == ["a", "b", "c"]
    assert all(torch.equal(masks[name], keep) for name, keep in given.items())
    masks["a"][:] = False
    assert torch.equal(masks["a"], given["a"])
    twin = PackedMasks(masks)
    del twin["b"]
    twin["a"] = ~given["a"]
    assert torch.equal(masks["a"], given["a"])
    assert len(masks) == 3
    assert sum(pack(keep).nbytes for keep in given.values()) == 2 + 2
