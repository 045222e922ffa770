"""ECoFLaP's allocation and scores against the originals'."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.pruning.toy import chain_of, pruner, random_blocks
from vlbench.calibration.gradients import gradients
from vlbench.errors import RunFailed, UserError
from vlbench.pruning.ecoflap import block_ratios, ecoflap, first_order, seeds_from, zeroth_order
from vlbench.structure import Structure


def test_allocations_of_the_original(shared: Path) -> None:
    cases = json.loads((shared / "oracles" / "pruners" / "ecoflap_allocation.json").read_text())
    assert len(cases) == 18
    for case in cases:
        told = case["scores"], case["numel"], case["keep_target"], case["max_sparsity"]
        assert ecoflap(*told, code=True) == pytest.approx(case["sparsity"], abs=1e-6)
        # Ours differs by no more than the published surplus, and keeps exactly what was asked for.
        ours = ecoflap(*told)
        kept = sum((1 - s) * n for s, n in zip(ours, case["numel"], strict=True))
        assert kept == pytest.approx(case["keep_target"], abs=1e-6)
        assert ours == pytest.approx(case["sparsity"], abs=1e-3)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 0.95), st.floats(0, 0.3))
def test_every_allocation_is_legal(seed: int, sparsity: float, margin: float) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 400, 7).tolist()
    scores = (rng.random(7) * (rng.random(7) > 0.4)).tolist()  # some blocks have no score at all
    highest, keep = min(1.0, sparsity + margin), int(sum(sizes) * (1 - sparsity)) + 7
    keep = min(keep, sum(sizes))
    found = ecoflap(scores, sizes, keep, highest)
    assert sum(round((1 - s) * n) for s, n in zip(found, sizes, strict=True)) == keep
    assert all(0 <= s <= highest + 1e-9 for s in found)


def test_an_allocation_that_cannot_be_is_told() -> None:
    with pytest.raises(UserError, match="cannot keep 11 of 10 entries"):
        ecoflap([1.0, 1.0], [5, 5], 11)
    with pytest.raises(UserError, match="pruned to at most 50% keep 6 entries, more than 2"):
        ecoflap([1.0, 1.0], [5, 5], 2, 0.5)


def toy(shared: Path) -> tuple[nn.Module, Structure, list[Tensor], dict[str, dict[str, dict[str, float]]]]:
    folder = shared / "oracles" / "pruners"
    arrays = np.load(folder / "ecoflap_toy_inputs.npz")
    pairs = [tuple(torch.from_numpy(arrays[f"blocks.{i}.{p}.weight"]) for p in ("fc1", "fc2")) for i in (0, 1)]
    net, structure = chain_of(pairs)  # type: ignore[arg-type]
    x, target = torch.from_numpy(arrays["X"]), torch.from_numpy(arrays["target"])
    # The recordings: the first 32 rows in batches of 8, mean square error, float64.
    losses = [lambda i=i: F.mse_loss(net(x[i : i + 8]), target[i : i + 8]) for i in range(0, 32, 8)]
    return net, structure, losses, json.loads((folder / "ecoflap_scores_toy.json").read_text())  # type: ignore[return-value]


@pytest.mark.parametrize("key", ["MEZO-GradOnly_sum", "GradMagAbs_sum"])
def test_scores_and_ratios_of_the_original(shared: Path, key: str) -> None:
    net, structure, losses, oracle = toy(shared)
    names = list(structure.matrices)
    if key.startswith("MEZO"):
        found = zeroth_order(net, names, losses, seeds_from(0))  # type: ignore[arg-type]
    else:
        found = first_order(net, names, [(loss, 8) for loss in losses])  # type: ignore[misc]
    wanted = {k.removeprefix("blocks."): v for k, v in oracle[key]["measure_sum"].items()}
    assert found == pytest.approx(wanted, rel=1e-6)
    ratios = {k.removeprefix("blocks."): v for k, v in oracle[key]["sparsity"].items()}
    assert block_ratios(structure, found, 0.5, code=True) == pytest.approx(ratios, abs=1e-6)


@pytest.mark.parametrize("key", ["GradOnly_sum", "GradMagSquare_avg"])
def test_other_scores_of_the_original(shared: Path, key: str) -> None:
    """Sums of |gradient|, and of what OBD scores a weight by, W^2 mean(gradient^2); ratios by their sums or means."""
    net, structure, losses, oracle = toy(shared)
    names = list(structure.matrices)
    seen = gradients(net, names, [(loss, 8) for loss in losses], magnitudes=key == "GradOnly_sum")  # type: ignore[misc]
    obd = pruner("obd")
    found = {
        name: float((one.gradient if key == "GradOnly_sum" else obd.score(net.get_parameter(name).detach(), one)).sum())  # type: ignore[union-attr]
        for name, one in seen.items()
    }
    wanted = {k.removeprefix("blocks."): v for k, v in oracle[key]["measure_sum"].items()}
    assert found == pytest.approx(wanted, rel=1e-6)
    ratios = {k.removeprefix("blocks."): v for k, v in oracle[key]["sparsity"].items()}
    assert block_ratios(structure, found, 0.5, code=True) == pytest.approx(ratios, abs=1e-6)


@pytest.mark.parametrize("fraction", [0.1, 0.29, 0.7, 0.9])
def test_blocks_keep_what_the_target_leaves(fraction: float) -> None:
    """size - int(size * fraction): 1 - 0.9 is less than 0.1 in floating point, and an entry more would go."""
    _, structure = random_blocks((10, 5), (10, 5), (10, 5))
    ratios = block_ratios(structure, {name: i + 1.0 for i, name in enumerate(structure.matrices)}, fraction)
    kept = sum((1 - ratios[name]) * shape[0] * shape[1] for name, shape in structure.matrices.items())
    assert kept == pytest.approx(300 - int(300 * fraction), abs=1e-9)


def test_a_loss_that_draws_is_moved_by_the_weights_alone() -> None:
    """Noise that is drawn anew in each call has no part in a score, and the global random numbers stay as they were."""
    net, structure = random_blocks((16, 12))
    x = torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(1))

    def plain() -> Tensor:
        return net(x).square().mean()  # type: ignore[no-any-return]

    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    names = list(structure.matrices)
    noisy = zeroth_order(net, names, [lambda: plain() + torch.rand(())], seeds_from(0))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert noisy == pytest.approx(zeroth_order(net, names, [plain], seeds_from(0)), rel=1e-2)


def test_a_loss_that_is_not_finite_is_told() -> None:
    net, structure = random_blocks((16, 12))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(RunFailed, match=r"the loss around 0\.fc1\.weight is not finite"):
        zeroth_order(net, list(structure.matrices), [lambda: torch.tensor(float("nan"))], seeds_from(0))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_zeroth_order_puts_the_weights_back_to_the_bit(shared: Path) -> None:
    net, structure, losses, _ = toy(shared)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    zeroth_order(net, list(structure.matrices), losses, seeds_from(3))  # type: ignore[arg-type]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
