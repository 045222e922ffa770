"""MACs of one prunable unit, measured on a real forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..structure import Site, Structure


def unit_macs(net: nn.Module, structure: Structure, forward: Callable[[], Any]) -> dict[str, float]:
    """Site -> multiply-accumulates that one unit takes in `forward()`, which should run one sample.

    A unit's entries of a matrix count once for every row the matrix is applied to; attention adds Lq * Lk for each
    owned query row (q k^T) and each owned output column (the weighted sum of v).
    """
    rows: dict[str, int] = {}
    hooks = []
    for path in {name.rpartition(".")[0] for name in structure.matrices}:

        def count(module: nn.Module, args: tuple[Tensor, ...], _: Any, path: str = path) -> None:
            rows[path] = rows.get(path, 0) + args[0].numel() // args[0].shape[-1]

        hooks.append(net.get_submodule(path).register_forward_hook(count))
    try:
        with torch.no_grad():
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    return {site.name: _site_macs(site, rows) for site in structure.sites}


def _site_macs(site: Site, rows: dict[str, int]) -> float:
    matrices = [s for s in site.slices if len(s.shape) > 1]
    macs = sum(s.entries_per_unit * rows.get(s.param.rpartition(".")[0], 0) for s in matrices)
    if site.kind == "attention":
        output = next(s for s in matrices if s.dim == 1)
        queries = rows.get(output.param.rpartition(".")[0], 0)
        # Self-attention has as many keys as queries; in cross-attention the other length is that of the encoder.
        lengths = [rows.get(s.param.rpartition(".")[0], 0) for s in matrices if s.dim == 0]
        keys = next((n for n in lengths if n != queries), queries)
        macs += 2 * output.index.shape[1] * queries * keys
    return float(macs)
