"""The rows that make a site's units, as one matrix: what optimisers that prune groups of rows work on."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..structure import Site, Structure


class UnitRows:
    """A site's units as rows: of every projection that makes them the weights and biases."""

    def __init__(self, net: nn.Module, site: Site) -> None:
        self.units = site.units
        parts: dict[str, list[Tensor]] = {}
        for part in site.slices:
            if part.dim == 0:
                parts.setdefault(part.param, []).append(part.index)
        self.parts = [(p := net.get_parameter(name), torch.cat(index, 1).to(p.device)) for name, index in parts.items()]

    def read(self) -> Tensor:
        """(units, entries)."""
        return torch.cat([p.detach()[index].flatten(1) for p, index in self.parts], 1)

    @torch.no_grad()
    def write(self, rows: Tensor, chosen: Tensor | None = None) -> None:
        """Put rows (units, entries) in their places. chosen: bool (units,), the units that are written."""
        start = 0
        for p, index in self.parts:
            count = index.shape[1] * (p.numel() // p.shape[0])
            new = rows[:, start : start + count].reshape(*index.shape, *p.shape[1:]).to(p.dtype)
            where = slice(None) if chosen is None else chosen.to(p.device)
            p[index[where]] = new[where]
            start += count


@dataclass
class Moved:
    """What one step of an optimiser has done to some rows: before (units, entries), and the direction in which it
    moved them, without its weight decay: after = before (1 - rate * decay) - rate * direction."""

    rows: UnitRows
    before: Tensor
    rates: list[tuple[float, float]] = field(default_factory=list)  # (rate, decay) of each parameter

    def direction(self) -> Tensor:
        """(units, entries), right after the step."""
        directions, start = [], 0
        for (p, index), (rate, decay) in zip(self.rows.parts, self.rates, strict=True):
            count = index.shape[1] * (p.numel() // p.shape[0])
            before, after = self.before[:, start : start + count], p.detach()[index].flatten(1)
            directions.append((before * (1 - rate * decay) - after) / rate if rate else torch.zeros_like(before))
            start += count
        return torch.cat(directions, 1)


def about_to_move(net: nn.Module, structure: Structure, optimiser: torch.optim.Optimizer) -> dict[str, Moved]:
    """Site -> what `Moved` needs to know before the optimiser steps. A decay is AdamW's; SGD's is part of its step."""
    decoupled = isinstance(optimiser, torch.optim.AdamW)
    rates = {
        id(p): (float(group["lr"]), float(group["weight_decay"]) * decoupled)
        for group in optimiser.param_groups
        for p in group["params"]
    }
    moved: dict[str, Moved] = {}
    for site in structure.sites:
        rows = UnitRows(net, site)
        moved[site.name] = Moved(rows, rows.read().clone(), [rates.get(id(p), (0.0, 0.0)) for p, _ in rows.parts])
    return moved
