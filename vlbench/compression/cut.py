"""Physical removal of units: the function of a cut model equals that of the gated one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..structure import Site, Slice, Structure
from .depth import UNIT, drop_blocks, key_of
from .width import UNIT as WIDTH
from .width import key_of_width, narrow_stream, tell

# Name of a site, or TOWER.blocks (depth.py), or TOWER.width (width.py) -> sorted int64 indices of the units that stay.
Kept = dict[str, Tensor]


def cut(net: nn.Module, structure: Structure, keep: Mapping[str, Tensor], *, kept_scale: bool = False) -> None:
    """Keep only the units `keep` names; sites it does not name stay whole.

    Parameters are replaced in place (ties and optimisers keep their objects; gradients are dropped). The original
    softmax scale and every bias travel along, so that cutting equals gating to rounding. kept_scale: cut attention gets
    the scale of its kept width where published code does so (`Site.rescale`), which changes the function.
    """
    for site in structure.sites:
        kept = keep.get(site.name)
        if kept is None or len(kept) == site.units:
            continue
        for parts in _by_parameter(site):
            _cut_parameter(net, parts, kept)
        if site.after_cut is not None:
            site.after_cut(net, kept)
        if kept_scale and site.rescale is not None:
            site.rescale(net, kept)
    for tower in structure.towers:
        kept = keep.get(key_of_width(tower))
        if kept is not None:
            narrow_stream(net, tower, kept, _cut_parameter)
    for tower in structure.towers:  # last: the paths of sites go by the blocks' numbers
        kept = keep.get(key_of(tower))
        if kept is not None and len(kept) < len(tower.blocks):
            drop_blocks(net, tower, kept)


def _by_parameter(site: Site) -> list[list[Slice]]:
    """Slices of one parameter together: whole heads of a fused qkv gate v and only cut q and k."""
    together: dict[tuple[str, int], list[Slice]] = {}
    for part in site.slices:
        together.setdefault((part.param, part.dim), []).append(part)
    return list(together.values())


def _cut_parameter(net: nn.Module, parts: list[Slice], kept: Tensor) -> None:
    """Remove every index a dropped unit owns; indices nobody owns stay (another site's, or never prunable)."""
    part = parts[0]
    parameter = net.get_parameter(part.param)
    stays = torch.ones(part.shape[part.dim], dtype=torch.bool)
    for one in parts:
        stays[one.index.flatten()] = False
        stays[one.index[kept].flatten()] = True
    rows = stays.nonzero().flatten().to(parameter.device)
    parameter.data = parameter.data.index_select(part.dim, rows).contiguous()
    parameter.grad = None
    owner = net.get_submodule(part.param.rpartition(".")[0])
    if isinstance(owner, nn.Linear):
        tell(owner)


@dataclass(frozen=True)
class Cut:
    """One cut that was made, as data: site -> (unit, kept units of the model as it then was), and what became of the
    softmax scale (see `cut`)."""

    sites: dict[str, tuple[str, list[int]]]
    kept_scale: bool = False

    @classmethod
    def of(cls, structure: Structure, keep: Mapping[str, Tensor], *, kept_scale: bool = False) -> Cut:
        units = {site.name: site.unit for site in structure.sites}
        units |= {key_of(tower): UNIT for tower in structure.towers}
        units |= {key_of_width(tower): WIDTH for tower in structure.towers}
        return cls({name: (units[name], kept.tolist()) for name, kept in keep.items()}, kept_scale)

    def repeat(self, net: nn.Module, structure: Structure) -> None:
        """Make the same cut in a model that has had the same history. structure: described from `net` as it is."""
        chosen = structure.with_units(lambda site: self.sites.get(site.name, (site.unit,))[0])
        keep = {name: torch.tensor(kept, dtype=torch.long) for name, (_, kept) in self.sites.items()}
        cut(net, chosen, keep, kept_scale=self.kept_scale)
