"""What a recipe is told: facts of the cell's task and model, read from their declarations without importing them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..method import Context
from ..plugins.entry import Entry
from ..plugins.table import table


def context_of(suite: str, task: str, model: Entry | None, sparsity: float | None) -> Context:
    """task: its name, which may be of no task. Where both say something of a publication, the model's word wins."""
    entry = table("tasks").entries.get(task)
    facts = entry.facts if entry is not None else {}
    training: dict[str, Mapping[str, Any]] = dict(facts.get("training") or {})
    for publication, settings in ((model.facts.get("training") if model else None) or {}).items():
        training[publication] = {**training.get(publication, {}), **settings}
    capability = table("capabilities").entries.get(str(facts.get("capability", "")))
    texts = capability is None or bool(capability.facts.get("texts", True))
    return Context(suite, task, texts, sparsity, training)
