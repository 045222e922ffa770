"""Cards that are data: a JSON file beside a family's Python file, read without importing anything.

    {"every": {facts of all cards}, "cards": [{"name": ..., "title": ..., "architecture": {...}}, ...]}

A card's own facts come before those of `every`; objects inside are joined the same way, so that `architecture` names
only what differs from size to size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .kinds import REQUIRED


def read_cards(file: Path) -> list[dict[str, Any]]:
    """The facts of every card of a file. Raises ValueError naming the card that lacks one."""
    table = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(table, dict) or not isinstance(table.get("cards"), list) or not table["cards"]:
        raise ValueError(f'{file.name} holds no cards: it should be {{"every": {{...}}, "cards": [{{...}}, ...]}}')
    cards = [joined(table.get("every", {}), card) for card in table["cards"]]
    for facts in cards:
        lacking = [key for key in ("name", *REQUIRED["family"]) if key not in facts]
        if lacking:
            raise ValueError(f"{file.name}: the card {facts.get('name', '?')} lacks {', '.join(lacking)}")
    return cards


def joined(every: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Both, `own` first, objects inside joined as well."""
    both = {
        k: joined(v, own[k]) if isinstance(v, dict) and isinstance(own.get(k), dict) else v for k, v in every.items()
    }
    return {**both, **{k: v for k, v in own.items() if not (isinstance(v, dict) and isinstance(every.get(k), dict))}}
