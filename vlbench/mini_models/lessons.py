"""What a mini model that answers several tasks learns from: their train splits, each question with its task's words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..mini.world import mini_root
from ..plugins.table import table
from ..plugins.worlds import worlds
from ..task import Sample, Task


def opened(name: str) -> Task:
    """The task on its mini world, with the options that suite=mini has."""
    entry = table("tasks").get(name)
    cls: type[Task] = entry.load()
    return cls(mini_root(worlds([entry])[name]), cls.Options.model_validate(dict(cls.mini)))


def lessons(names: Sequence[str]) -> Iterator[Sample]:
    """Samples of the train splits. Ids have the task's name before them."""
    for name in names:
        task = opened(name)
        words = str(task.taught().get("prompt", "{}"))
        for sample in task.samples(task.split_for("train")):
            yield replace(sample, id=f"{name}/{sample.id}", text=words.replace("{}", sample.text))
