"""What a reader of a row must be told about it. Flags come from cards and splits and are stored in the record."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cell import Cell
    from .model import Card
    from .record import Interval, Parameters, Record

ROUNDING = 0.15  # percent points: published numbers have one decimal, and other libraries resize images
PARITY = "parity:"
# How a flag begins -> what it tells.
MEANINGS = {
    "contaminated": "the weights were trained on the split that is evaluated",
    "selected-on-report": "settings or weights were chosen by their score on the split that is reported",
    PARITY: "the dense model does not score here what was published of its weights",
    "modality collapse:": "hardly anything of a tower's prunable weights is left",
}


def flags_of(cell: Cell, card: Card, bad: list[str], parameters: Parameters, n_tuned: int) -> list[str]:
    """Flags that do not depend on a score. bad: ids of the samples that failed. n_tuned: settings that the chain chose
    between on the select split, which must not be the one that is reported."""
    from .pruning.modality import collapsed  # it needs torch, which a board does not

    flags = []
    if cell.spec.words.limit:
        flags.append("limit")
    if bad:
        flags.append(f"{len(bad)} errors")
    split = f"{cell.spec.task.name}/{cell.split}"
    selected = n_tuned > 1 and cell.split == cell.task.roles()["select"]
    if cell.spec.words.label or cell.spec.words.checkpoint:
        flags.append("own checkpoint")
    elif split in card.trained_on:
        flags.append("contaminated")
    if selected or (split in card.selected_on and "own checkpoint" not in flags):
        flags.append("selected-on-report")
    return [*flags, *(f"modality collapse: {name}" for name in collapsed(parameters.towers))]


def parity_flags(cell: Cell, card: Card, metric: str, spread: Interval, dense: Record | None) -> list[str]:
    """ "parity: top1 78.10, published 79.8" for a dense model that does not score what its card says was published, and
    for every row that is compared with it. None where the card's number is of other weights or of other samples."""
    if dense is not None:
        return [flag for flag in dense.flags if flag.startswith(PARITY)]
    if not cell.is_dense or cell.spec.words.limit or cell.spec.words.label or cell.spec.words.checkpoint:
        return []
    number = card.published.get(f"{cell.spec.task.name}/{cell.split}/{metric}")
    if number is None or agrees(number, spread.low, spread.high):
        return []
    return [f"{PARITY} {metric} {spread.value:.2f}, published {number:g}"]


def meanings(flags: Iterable[str]) -> list[tuple[str, str]]:
    """(flag, what it tells) for each kind of flag among these, in the order of MEANINGS."""
    told = set(flags)
    kinds = ((kind, meaning) for kind, meaning in MEANINGS.items() if any(flag.startswith(kind) for flag in told))
    return [(kind.rstrip(":"), meaning) for kind, meaning in kinds]


def agrees(published: float, low: float, high: float) -> bool:
    """Whether a published number lies within our 95 % interval, but for its rounding."""
    return low - ROUNDING <= published <= high + ROUNDING
