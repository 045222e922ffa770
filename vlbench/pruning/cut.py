"""Physical removal of units: the function of a cut model equals that of the gated one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..structure import Slice, Structure

Kept = dict[str, Tensor]  # site name -> sorted int64 indices of the units that stay


def cut(net: nn.Module, structure: Structure, keep: Mapping[str, Tensor]) -> None:
    """Keep only the units `keep` names; sites it does not name stay whole.

    Parameters are replaced in place (ties and optimisers keep their objects; gradients are dropped). The original
    softmax scale and every bias travel along, so that cutting equals gating to rounding.
    """
    for site in structure.sites:
        kept = keep.get(site.name)
        if kept is None or len(kept) == site.units:
            continue
        for part in site.slices:
            _cut_parameter(net, part, kept)
        if site.after_cut is not None:
            site.after_cut(kept)


def _cut_parameter(net: nn.Module, part: Slice, kept: Tensor) -> None:
    """Remove every index a dropped unit owns; indices nobody owns stay (another site's, or never prunable)."""
    parameter = net.get_parameter(part.param)
    stays = torch.ones(part.shape[part.dim], dtype=torch.bool)
    stays[part.index.flatten()] = False
    stays[part.index[kept].flatten()] = True
    rows = stays.nonzero().flatten().to(parameter.device)
    parameter.data = parameter.data.index_select(part.dim, rows).contiguous()
    parameter.grad = None
    _tell_linear(net, part, len(rows))


def _tell_linear(net: nn.Module, part: Slice, size: int) -> None:
    owner = net.get_submodule(part.param.rpartition(".")[0])
    if isinstance(owner, nn.Linear):
        if part.dim == 0:
            owner.out_features = size
        else:
            owner.in_features = size


def compose(earlier: Mapping[str, Tensor], later: Mapping[str, Tensor]) -> Kept:
    """Two cuts in a row as one, in units of the uncut model."""
    both = dict(earlier)
    for name, kept in later.items():
        both[name] = earlier[name][kept] if name in earlier else kept
    return both
