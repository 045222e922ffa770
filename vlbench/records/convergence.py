"""Whether a trained cell has converged: the tick or cross of the papers' tables.

UPop's tables put a cross where a model answers no better than chance after training, and give no rule. Ours reads the
record alone, so that it says the same of every result, old or a stranger's:

    a trained cell has converged where the 95 % interval of its primary metric lies above
    chance + (dense - chance) / 10

with `chance` what the best constant answer scores (the task declares it; 0 where it does not) and `dense` the dense
model on the same samples. Chance alone is not enough: an interval just above it is a model that has learned next to
nothing, and for metrics without a chance level (CIDEr, recall) any number would do. A tenth is half of what the weakest
result that the UPop paper counts as converged keeps (NLVR2 at 10x: 57.17, where dense is 82.48 and chance 50: 22 %).

The loss is no part of the rule: losses with and without distillation do not compare, and a loss that falls while the
metric stays at chance is what the cross stands for.
"""

from __future__ import annotations

from ..plugins.table import table
from .record import Record

SHARE = 0.1  # of what the dense model has above chance


def converged(record: Record) -> bool | None:
    """None where the question has no meaning: nothing was trained, or there is no dense result to compare with."""
    if not record.trained or record.vs_dense is None:
        return None
    chance = chance_of(record.task)
    dense = record.interval.value - record.vs_dense.delta
    floor = chance + SHARE * (dense - chance)
    # A task whose metric falls as models get better declares a chance above any dense model.
    return record.interval.low > floor if dense >= chance else record.interval.high < floor


def chance_of(task: str) -> float:
    """What the best constant answer scores, in percent; 0 for a task that is not installed here."""
    entry = table("tasks").entries.get(task)
    return float(entry.facts.get("chance", 0.0)) if entry is not None else 0.0
