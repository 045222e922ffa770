"""MACs of one prunable unit, measured on a real forward pass."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from ..structure import Site, Structure

Calls = list[tuple[int, int]]  # of a matrix: (rows it is applied to, tokens of a sequence) of each of its calls


def unit_macs(net: nn.Module, structure: Structure, forward: Callable[[], Any]) -> dict[str, float]:
    """Site -> multiply-accumulates that one unit takes in `forward()`, of however many sequences.

    A unit's entries of a matrix count once for every row the matrix is applied to; attention adds Lq * Lk of every
    sequence for each owned query row (q k^T) and each owned output column (the weighted sum of v).
    """
    calls: dict[str, Calls] = {}
    hooks = []
    for path in {name.rpartition(".")[0] for name in structure.matrices}:

        def count(module: nn.Module, args: tuple[Tensor, ...], _: Any, path: str = path) -> None:
            *_, tokens, width = (1, *args[0].shape)
            calls.setdefault(path, []).append((args[0].numel() // width, tokens))

        hooks.append(net.get_submodule(path).register_forward_hook(count))
    try:
        with torch.no_grad():
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    return {site.name: _site_macs(site, calls) for site in structure.sites}


def _site_macs(site: Site, calls: dict[str, Calls]) -> float:
    def of(name: str) -> Calls:
        return calls.get(name.rpartition(".")[0], [])

    matrices = [s for s in site.slices if len(s.shape) > 1]
    macs: float = sum(s.entries_per_unit * sum(rows for rows, _ in of(s.param)) for s in matrices)
    if site.kind == "attention":
        output = next(s for s in matrices if s.dim == 1)
        queries = of(output.param)
        # Self-attention has as many keys as queries; in cross-attention the other length is that of the encoder.
        others = (of(s.param) for s in matrices if s.dim == 0)
        keys = next((other for other in others if other and other != queries), queries)
        products = 1 if site.beside else 2  # dimensions of the values alone take no part in q k^T
        macs += products * output.index.shape[1] * _pairs(queries, keys)
    return macs


def _pairs(queries: Calls, keys: Calls) -> float:
    """How many (query, key) there are: each row of the queries meets the keys of one sequence. Where keys are made once
    for several calls of the queries, these meet them at their mean length."""
    if len(queries) == len(keys):
        return sum(rows * tokens for (rows, _), (_, tokens) in zip(queries, keys, strict=True))
    return sum(rows for rows, _ in queries) * fmean(tokens for _, tokens in keys)
