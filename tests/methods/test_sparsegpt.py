"""SparseGPT against the original's masks and weights, and against a plain reading of its algorithm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.pruning.toy import ToyJob, pruner, two_blocks
from vlbench.calibration.statistics import Statistics
from vlbench.compression.masks import Keep
from vlbench.errors import RunFailed
from vlbench.pruning.obs import sweep

PATTERNS: dict[str, Any] = {"u50": 0.5, "u60": 0.6, "u70": 0.7, "2of4": "2:4", "4of8": "4:8"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_single_linears_of_the_original(shared: Path, pattern: str, dtype: torch.dtype) -> None:
    oracle = np.load(shared / "oracles" / "pruners" / f"linear_48x64_{pattern}.npz")
    method = pruner("sparsegpt", "sparsegpt-code", sparsity=PATTERNS[pattern])
    seen = Statistics.zeros(64, torch.device("cpu"), gram=True, dtype=dtype)
    for sample in torch.from_numpy(oracle["X"]).view(16, 1, 8, 64):
        seen.add(sample)
    assert seen.gram is not None
    assert torch.allclose(2 / 16 * seen.gram.float(), torch.from_numpy(oracle["sgpt_H"]), atol=1e-5)
    keep = Keep(method.options.fraction, "matrix", method.options.rule, method.options.n_m)
    weight, mask = method.solve(torch.from_numpy(oracle["W"]), seen, keep)
    assert torch.equal(mask, torch.from_numpy(oracle["sgpt_keep"]))
    assert float((weight - torch.from_numpy(oracle["sgpt_W"])).abs().max()) < 5e-7


@pytest.mark.parametrize("recipe", ["sparsegpt-code", "wanda-code", "ressa-code"])
@pytest.mark.parametrize("pattern", ["u50", "2of4"])
def test_two_blocks_of_the_original(shared: Path, tmp_path: Path, pattern: str, recipe: str) -> None:
    arrays = np.load(shared / "oracles" / "pruners" / f"mlp2_sequential_{pattern}.npz")
    net, structure = two_blocks(arrays)
    job = ToyJob(net, structure, torch.from_numpy(arrays["X"]).view(16, 8, 64), tmp_path)
    pruner("sparsegpt", recipe, sparsity=PATTERNS[pattern], calibration_samples=16).apply(job)
    for name, mask in job.changes.state.masks.items():
        block, part, _ = name.split(".")
        wanted = torch.from_numpy(arrays[f"sgpt_b{block}_{part}"])
        assert torch.equal(mask, wanted != 0)
        assert torch.allclose(net.get_parameter(name), wanted, atol=1e-5)


def plain(weight: Tensor, hessian: Tensor, keep: Any, block: int, damp: float = 0.01) -> tuple[Tensor, Tensor]:
    """The published algorithm as it stands: right-looking, every column rewritten for each one that is pruned."""
    w, h = weight.clone(), hessian.clone()
    d = h.diagonal()
    d[d == 0] = 1
    d += damp * d.mean()
    u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    mask = torch.ones_like(w, dtype=torch.bool)
    m = keep.n_m[1] if keep.n_m else 0
    for first in range(0, w.shape[1], block):
        stop = min(first + block, w.shape[1])
        if not m:
            mask[:, first:stop] = keep(w[:, first:stop] ** 2 / u.diagonal()[first:stop] ** 2)
        for i in range(first, stop):
            if m and i % m == 0:
                mask[:, i : i + m] = keep(w[:, i : i + m] ** 2 / u.diagonal()[i : i + m] ** 2)
            error = torch.where(mask[:, i], 0.0, w[:, i]) / u[i, i]
            w[:, i:] -= error[:, None] * u[i, i:]
            w[:, i] *= mask[:, i]
    return w, mask


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 20), st.sampled_from([4, 8, 12, 128]),
    st.sampled_from([0.1, 0.5, 0.9, (2, 4), (1, 4)]), st.sampled_from(["row", "matrix"]),
    st.sampled_from(["exact", "<=", "<"]),
)  # fmt: skip
def test_any_shape_equals_the_plain_algorithm(
    rows: int, quads: int, block: int, target: Any, group: Any, rule: Any
) -> None:
    rng = torch.Generator().manual_seed(rows * 100 + quads)
    weight = torch.randn(rows, 4 * quads, generator=rng, dtype=torch.float64)
    x = torch.randn(30, 4 * quads, generator=rng, dtype=torch.float64)
    n_m = target if isinstance(target, tuple) else None
    keep = Keep(0.5 if n_m else target, group, rule, n_m)
    found, mask = sweep(weight, x.T @ x, keep, block=block)
    wanted, masks = plain(weight, x.T @ x, keep, block)
    assert torch.equal(mask, masks)
    assert torch.allclose(found, wanted, atol=1e-9)
    assert bool((found[~mask] == 0).all())


def test_it_loses_less_output_than_its_mask_alone() -> None:
    rng = torch.Generator().manual_seed(0)
    weight, mixing = torch.randn(16, 32, generator=rng), torch.randn(8, 32, generator=rng)
    x = torch.randn(200, 8, generator=rng) @ mixing + 0.1 * torch.randn(200, 32, generator=rng)  # columns alike
    found, mask = sweep(weight, x.T @ x, Keep(0.5))
    assert float((x @ (found - weight).T).norm()) < 0.7 * float((x @ (weight * mask - weight).T).norm())


@pytest.mark.parametrize("rule", ["exact", "<="])
def test_dead_columns(rule: Any) -> None:
    """Columns that met no input go first. By the code's rule all of them become zero; by ours those that the mask
    keeps stay as they were, so that the count is met."""
    rng = torch.Generator().manual_seed(0)
    weight, x = torch.randn(4, 8, generator=rng), torch.randn(50, 8, generator=rng)
    x[:, [1, 2, 3, 5, 6]] = 0
    found, mask = sweep(weight, x.T @ x, Keep(0.5, "row", rule))
    assert bool(torch.isfinite(found).all())
    if rule == "exact":
        assert (found == 0).sum(1).tolist() == [4] * 4
        assert torch.equal(mask[0], torch.tensor([1, 0, 0, 0, 1, 0, 1, 1], dtype=torch.bool))
        assert torch.equal(found[mask], weight[mask])  # nothing to make up for: what went had no effect
    else:
        assert bool((found[:, [1, 2, 3, 5, 6]] == 0).all())


def test_products_that_cannot_be_inverted_are_told() -> None:
    x = torch.ones(5, 8)
    with pytest.raises(RunFailed, match="larger damp="):
        sweep(torch.ones(2, 8), x.T @ x, Keep(0.5), damp=0.0)


def test_structured_and_rankings_over_matrices_are_refused() -> None:
    for words in ({"pattern": "structured"}, {"group": "model", "propagate": "dense"}):
        with pytest.raises(ValueError, match="Input should be"):
            pruner("sparsegpt", **words)
