"""How much of every site a compressed model keeps, read from what was saved: no method is asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from ..compression.depth import original_blocks
from ..compression.saved import load_model, untouched
from ..structure import Site

# (modality, kind) of a site -> the component that papers report it under. Other pairs are called by their two words.
COMPONENTS = {
    ("vision", "attention"): "vision attention",
    ("vision", "ffn"): "vision FFN",
    ("language", "attention"): "text attention",
    ("language", "ffn"): "text FFN",
    ("cross", "attention"): "cross-attention",
}


@dataclass(frozen=True)
class Retained:
    """One site. row: its name without the layer's number; layer: from 0; entries: of its prunable matrices before
    pruning; kept: how many of them are left and not masked."""

    row: str
    layer: int
    component: str
    entries: int
    kept: int

    @property
    def fraction(self) -> float:
        return self.kept / self.entries


def retained(folder: Path) -> list[Retained]:
    """Every site of the model saved in `folder`, in order of data flow. Raises UserError where that is damaged."""
    model, state = load_model(folder)
    now = {site.name: site for site in model.structure().sites}
    original = untouched(folder, model).structure()
    left = original_blocks([made.sites for made in state.cuts], original)
    shares = []
    for tower in original.towers:
        number = {old: new for new, old in enumerate(left[tower.name])}
        for layer, block in enumerate(tower.blocks):
            for site in block.sites:
                rest = site.name.removeprefix(f"{tower.name}.{layer}")
                matrices = now[f"{tower.name}.{number[layer]}{rest}"].matrices if layer in number else {}
                kept = sum(
                    int(state.masks[name].sum()) if name in state.masks else math.prod(shape)
                    for name, shape in matrices.items()
                )
                entries = sum(math.prod(shape) for shape in site.matrices.values())
                shares.append(Retained(_row(site), layer, component(site), entries, kept))
    return shares


def component(site: Site) -> str:
    """What the site is counted under: vision attention, text FFN ..."""
    return COMPONENTS.get((site.modality, site.kind), f"{site.modality} {site.kind}")


def _row(site: Site) -> str:
    """ "text.0.cross1" -> "text.cross1": a site's line in a heat map."""
    return ".".join(part for part in site.name.split(".") if not part.isdigit())


def by_component(sites: Sequence[Retained]) -> dict[str, float]:
    """Component -> fraction of its entries that is kept."""
    names = dict.fromkeys(site.component for site in sites)
    parts = {name: [s for s in sites if s.component == name] for name in names}
    return {name: sum(s.kept for s in part) / sum(s.entries for s in part) for name, part in parts.items()}


def by_layer(models: Sequence[Sequence[Retained]]) -> dict[tuple[str, int], float]:
    """(row, layer) -> fraction that is kept, the mean over `models` (seeds of one target)."""
    places = dict.fromkeys((site.row, site.layer) for site in models[0])
    return {p: fmean(s.fraction for m in models for s in m if (s.row, s.layer) == p) for p in places}
