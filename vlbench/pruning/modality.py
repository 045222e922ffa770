"""A target spread over towers: `vision=0.5 language=0.7`, or some towers' ratios and the rest from the budget.

Two budgets. parameters (iso-parameter): the target is the fraction of the prunable set that goes, so that rows of one
target are of one size. ratio (iso-ratio): it is the mean ratio of the pruned towers, as RESSA sweeps it (arXiv
2404.02424); towers differ in size, so that its 60:40 and 40:60 remove 43 % and 52 % of BLIP-2.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import UserError
from ..structure import Structure, Tower
from .options import ScoreOptions

NEAR = 5e-4  # a target written with three digits agrees with ratios that are all given


def tower_ratios(structure: Structure, options: ScoreOptions) -> dict[str, float]:
    """Tower -> fraction of its share of the prunable set to remove. Raises UserError for a tower that is not there,
    and where the target asks for more, or less, than the towers left can give."""
    given = _named(structure, options.tower_ratios)
    target = options.fraction
    if not given:
        return {tower.name: target for tower in structure.towers}
    if options.n_m is not None:
        return {tower.name: given.get(tower.name, target) for tower in structure.towers}
    sizes = structure.tower_sizes()
    rest = [tower.name for tower in structure.towers if tower.name not in given]
    if not rest:
        return _agreed(given, sizes, options)
    if options.budget == "parameters":
        left = target * structure.size - sum(ratio * sizes[name] for name, ratio in given.items())
        ratio = left / sum(sizes[name] for name in rest)
    else:
        pruned = [r for r in given.values() if r > 0]
        ratio = (target * (len(pruned) + len(rest)) - sum(pruned)) / len(rest)
    if not 0 <= ratio < 1:
        words = " ".join(f"{name}={value:g}" for name, value in options.tower_ratios.items())
        raise UserError(
            f"sparsity={target:g} with {words} and budget={options.budget} asks {', '.join(rest)} for {ratio:.0%} of "
            "what is there: change a ratio or the target."
        )
    return {tower.name: given.get(tower.name, ratio) for tower in structure.towers}


def modality(tower: Tower) -> str:
    """A tower's modality: its first site's. Cross-attention belongs to the tower that it stands in."""
    return tower.sites[0].modality


def _named(structure: Structure, ratios: Mapping[str, float]) -> dict[str, float]:
    """Tower -> ratio. A tower's own name comes before its modality's."""
    towers = {tower.name: modality(tower) for tower in structure.towers}
    for name in ratios:
        if name not in towers and name not in towers.values():
            names = ", ".join(f"{tower} ({kind})" for tower, kind in towers.items())
            raise UserError(f"{name}={ratios[name]:g}: this model has no tower {name!r}. Its towers: {names}.")
    return {t: ratios[t] if t in ratios else ratios[m] for t, m in towers.items() if t in ratios or m in ratios}


def _agreed(given: Mapping[str, float], sizes: Mapping[str, int], options: ScoreOptions) -> dict[str, float]:
    """All towers have their ratio: the target must be what they come to, by either budget. (A modality's ratio counts
    once in the mean that stands for a target that was left out, however many towers it has.)"""
    ratios, target = options.tower_ratios, options.fraction
    share = sum(ratio * sizes[name] for name, ratio in given.items()) / sum(sizes.values())
    mean = _mean(given)
    if min(abs(target - reading) for reading in (share, mean, _mean(ratios))) > NEAR:
        words = " ".join(f"{name}={ratio:g}" for name, ratio in ratios.items())
        raise UserError(
            f"{words} removes {share:.4g} of the prunable set (mean ratio {mean:.4g}), not sparsity={target:g}: leave "
            "sparsity= out, or one tower's ratio."
        )
    return dict(given)


def _mean(ratios: Mapping[str, float]) -> float:
    pruned = [ratio for ratio in ratios.values() if ratio > 0]
    return sum(pruned) / max(1, len(pruned))


COLLAPSED = 0.98  # a tower that has lost so much of its share of the prunable set answers nothing


def collapsed(towers: Mapping[str, float]) -> list[str]:
    """The towers that are as good as empty, of tower -> fraction of its share that is gone (a record's `towers`)."""
    return [name for name, gone in towers.items() if gone >= COLLAPSED]
