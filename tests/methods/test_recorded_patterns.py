"""Wanda's own prune functions (locuslab/wanda 8e8fc87), run over two blocks: other patterns, more than 128 columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.pruning.toy import ToyJob, pruner, two_blocks

ORACLES = Path(__file__).parents[1] / "oracles" / "pruners"
PATTERNS: dict[str, Any] = {"u50": 0.5, "u60": 0.6, "u70": 0.7, "2of4": "2:4", "4of8": "4:8"}
KEYS = {"magnitude": "mag", "wanda": "wanda", "sparsegpt": "sgpt"}
CASES = [
    *(("mlp2_other_patterns", pattern, method) for pattern in ("u60", "u70", "4of8") for method in KEYS),
    *(("mlp2_wide", pattern, method) for pattern in ("u50", "u70", "2of4") for method in ("wanda", "sparsegpt")),
]
ROWS = 4  # of SparseGPT's weights every fourth row is recorded


def inputs_of(recorded: Any) -> Any:
    """The toy of the file itself, stored in float16; without one, that of the patterns recorded before."""
    if "X" in recorded.files:
        return {k: recorded[k].astype(np.float32) for k in recorded.files if k == "X" or k[:2] in ("b0", "b1")}
    return np.load(ORACLES / "mlp2_sequential_u50.npz")


@pytest.mark.parametrize(("file", "pattern", "method"), CASES)
def test_two_blocks_of_the_original(tmp_path: Path, file: str, pattern: str, method: str) -> None:
    """Masks to the bit, SparseGPT's weights to 1e-5; what is removed is zero and what stays is as it was."""
    recorded = np.load(ORACLES / f"{file}.npz")
    arrays = inputs_of(recorded)
    net, structure = two_blocks(arrays)
    before = {name: net.get_parameter(name).detach().clone() for name in structure.matrices}
    recipe = "sparsegpt-code" if method == "sparsegpt" else "wanda-code"
    words = {} if method == "magnitude" else {"calibration_samples": 16}
    job = ToyJob(net, structure, torch.from_numpy(arrays["X"]).view(16, 8, -1), tmp_path)
    pruner(method, recipe, sparsity=PATTERNS[pattern], **words).apply(job)
    for name, old in before.items():
        block, part, _ = name.split(".")
        key = f"{pattern}_{KEYS[method]}_b{block}_{part}"
        kept = unpacked(recorded[f"{key}_keep"], old.shape[1])
        new = net.get_parameter(name).detach()
        assert torch.equal(new != 0, kept), name
        if method == "sparsegpt":
            assert torch.allclose(new[::ROWS], torch.from_numpy(recorded[key]), atol=1e-5)
        else:
            assert torch.equal(new, old * kept)


def unpacked(bits: np.ndarray, columns: int) -> Tensor:
    return torch.from_numpy(np.unpackbits(bits, axis=1, count=columns).astype(bool))
