"""How a library's own classes compute what a cut model of ours computes, for `vlbench export`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOADER = "load.py"
NETWORK = "network.py"

Attributes = dict[str, Any]
# Path of an attention module -> its attributes in the library's class, and the factor of its query rows (weight and
# bias): a library that divides by the root of the *cut* head's width then divides by that of ours.
CutAttributes = dict[str, tuple[Attributes, float]]


@dataclass(frozen=True)
class Stock:
    """files: name -> Python source. load.py has load(folder) -> nn.Module, in eval mode, and imports no vlbench;
    network.py has a class that no library has. facts: what load.py reads in stock.json, beside config.json and
    model.safetensors; JSON values. needs_heads: the library's attention fails where every unit of it is gone
    (transformers' views no elements as heads of a width that torch should find)."""

    files: Mapping[str, str]
    facts: Mapping[str, Any]
    needs_heads: bool = False

    @classmethod
    def of(
        cls, facts: Mapping[str, Any], loader: Path, network: Path | None = None, *, needs_heads: bool = False
    ) -> Stock:
        """From source files that lie beside a family's."""
        paths = {LOADER: loader, **({NETWORK: network} if network else {})}
        texts = {name: path.read_text(encoding="utf-8") for name, path in paths.items()}
        return cls(texts, facts, needs_heads)


def query_factor(scale: float, width: int) -> float:
    """What turns a softmax scale of 1/sqrt(width), width of the cut head, into `scale`."""
    factor = scale * width**0.5
    return 1.0 if abs(factor - 1) < 1e-12 else factor
