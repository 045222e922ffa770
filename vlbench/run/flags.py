"""What a reader of a row must be told about it. Flags come from cards and splits and are stored in the record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..records.flags import PARITY, Stated, agrees

if TYPE_CHECKING:
    from ..cell.cell import Cell
    from ..model import Card
    from ..records.record import Interval, Parameters, Record


def flags_of(cell: Cell, card: Card, bad: list[str], parameters: Parameters, n_tuned: int) -> list[str]:
    """Flags that do not depend on a score. bad: ids of the samples that failed. n_tuned: settings that the chain chose
    between on the select split, which must not be the one that is reported."""
    from ..pruning.modality import collapsed  # it needs torch, which a board does not

    flags = []
    if cell.spec.words.limit:
        flags.append("limit")
    if bad:
        flags.append(f"{len(bad)} errors")
    split = f"{cell.spec.task.name}/{cell.split}"
    selected = n_tuned > 1 and cell.split == cell.task.roles().get("select")
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
    of = (cell.spec.task.name, cell.split, metric)
    settings = {**cell.spec.task_options.model_dump(mode="json"), **cell.evaluation}
    stated = ((Stated.of(key), number) for key, number in card.published.items())
    numbers = [n for key, n in stated if (key.task, key.split, key.metric) == of and key.is_of(settings)]
    return [
        f"{PARITY} {metric} {spread.value:.2f}, published {number:g}"
        for number in numbers
        if not agrees(number, spread.low, spread.high)
    ]
