"""Checkpoints that are already cut: how wide each site is, read from the shapes of their tensors.

Files of pruning papers hold smaller matrices and say nothing else (UPop's `prune_if_compressed` does the same by hand
for every layer). Which units they kept is not known and not needed: the weights of the kept ones are the file's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..structure import Site, Structure
from .cut import cut


def fit_to(net: nn.Module, structure: Structure, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Cut `net` to the shapes of `tensors` (its own keys, so that load_into takes them) and return the width of every
    site that is cut, as `narrow` repeats it. structure: described from `net`, with the units that the file was cut by.

    Sites that the tensors lack, or have wider, stay as they are: load_into names them. Raises UserError where the
    tensors of one site disagree or hold no whole units.
    """
    widths = {site.name: _width(site, tensors) for site in structure.sites}
    narrower = {site.name: width for site in structure.sites if (width := widths[site.name]) < site.units}
    narrow(net, structure, narrower)
    return narrower


def narrow(net: nn.Module, structure: Structure, widths: Mapping[str, int]) -> None:
    """Keep the first `widths[site]` units of the sites named. Raises UserError for a name or a width that is none."""
    units = {site.name: site.units for site in structure.sites}
    for name, width in widths.items():
        if not 1 <= width <= units.get(name, 0):
            raise UserError(f"the configuration cuts {name} to {width} units, and this model has {units.get(name, 0)}.")
    cut(net, structure, {name: torch.arange(width) for name, width in widths.items()})


def _width(site: Site, tensors: Mapping[str, Tensor]) -> int:
    """The units of `site` that the tensors hold."""
    units: dict[str, float] = {}
    for part in site.slices:
        tensor = tensors.get(part.param)
        if tensor is not None and tensor.ndim == len(part.shape):
            gone = part.shape[part.dim] - tensor.shape[part.dim]
            units[part.param] = site.units - gone / part.index.shape[1]
    if not units or max(units.values()) > site.units:
        return site.units
    first, width = next(iter(units.items()))
    if width < 1 or width != int(width):
        raise UserError(
            f"these weights are cut, but {first} keeps no whole number of units ({site.unit}) of {site.name}."
        )
    other = next((name for name, one in units.items() if one != width), None)
    if other is not None:
        raise UserError(f"these weights are cut, but {first} and {other} keep different widths of {site.name}.")
    return int(width)
