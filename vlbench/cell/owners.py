"""Which part of a cell an option belongs to."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ..errors import UserError
from ..options import MethodOptions, PruneOptions
from ..plugins.table import table


def unknown_recipe_keys(name: str, recipe: Mapping[str, Any], owners: Mapping[str, type[BaseModel]]) -> list[str]:
    """A sentence for every key of a recipe that is no option, or not of one link only."""
    sentences = []
    for key in recipe:
        fitting = _owners_of(key, owners)
        if len(fitting) != 1:
            why = f"belongs to {' and '.join(fitting)}" if fitting else "is no option"
            sentences.append(f"recipe={name} sets {key}, which {why}")
    return sentences


def _all_options() -> dict[str, type[BaseModel]]:
    """The options of every task and method that can be used, by name."""
    options: dict[str, type[BaseModel]] = {}
    for entry in (*table("tasks").entries.values(), *table("methods").entries.values()):
        with contextlib.suppress(UserError):
            options[entry.name] = getattr(entry.load(), "Options", MethodOptions)
    return options


def _owners_of(key: str, owners: Mapping[str, type[BaseModel]]) -> list[str]:
    """Who has the option `key`, or `OWNER.key`."""
    prefix, dot, name = key.rpartition(".")
    return [o for o, model in owners.items() if (not dot or o == prefix) and _has(model, name)]


def _has(model: type[BaseModel], name: str) -> bool:
    return name in model.model_fields or (name == "ratio" and issubclass(model, PruneOptions))
