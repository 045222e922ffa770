"""What a reader of a row must be told about it: kinds of flags and their meanings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

ROUNDING = 0.15  # percent points: published numbers have one decimal, and other libraries resize images


PARITY = "parity:"


# How a flag begins -> what it tells.
MEANINGS = {
    "contaminated": "the weights were trained on the split that is evaluated",
    "selected-on-report": "settings or weights were chosen by their score on the split that is reported",
    PARITY: "the dense model does not score here what was published of its weights",
    "modality collapse:": "hardly anything of a tower's prunable weights is left",
}


def meanings(flags: Iterable[str]) -> list[tuple[str, str]]:
    """(flag, what it tells) for each kind of flag among these, in the order of MEANINGS."""
    present = set(flags)
    kinds = ((kind, meaning) for kind, meaning in MEANINGS.items() if any(flag.startswith(kind) for flag in present))
    return [(kind.rstrip(":"), meaning) for kind, meaning in kinds]


@dataclass(frozen=True)
class Stated:
    """A key of a card's published numbers: "task/split/metric", or "task/split/metric?rule=official&ocr=true", where
    evaluators differ: the settings whose number it is."""

    task: str
    split: str
    metric: str
    settings: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, key: str) -> Stated:
        names, _, words = key.partition("?")
        task, split, metric = names.split("/", 2)  # a metric's name may have slashes
        pairs = (word.partition("=") for word in words.split("&") if word)
        return cls(task, split, metric, tuple((name, value) for name, _, value in pairs))

    def is_of(self, evaluation: Mapping[str, Any]) -> bool:
        """Whether a cell was evaluated so."""
        return all(str(evaluation.get(name)).lower() == value for name, value in self.settings)


def agrees(published: float, low: float, high: float) -> bool:
    """Whether a published number lies within our 95 % interval, but for its rounding."""
    return low - ROUNDING <= published <= high + ROUNDING
