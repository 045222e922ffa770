"""The options that recipe=upop-code resolves to, for following what the original code did."""

from __future__ import annotations

import importlib
from typing import Any

from vlbench.cell.resolve import resolve
from vlbench.compression.gates import Gates
from vlbench.structure import Structure


def code_options(task: str, **words: Any) -> Any:
    """Of the search, as `vlbench run suite=full task=... method=upop recipe=upop-code` has them; words: what a tiny
    recording has in place of the published lengths."""
    told = {f"upop_search.{key}": str(value) for key, value in words.items()}
    return resolve({"suite": "full", "task": task, "method": "upop", "recipe": "upop-code", **told}).links[0].options


def code_search(gates: Gates, structure: Structure, options: Any) -> Any:
    """The search with the unit costs that the options say."""
    upop = importlib.import_module("vlbench.methods.upop")
    return upop.Search(gates, structure, options, upop.UPopSearch(options)._cost(structure))
