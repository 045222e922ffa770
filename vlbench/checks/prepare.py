"""`vlbench data prepare`: what lies packed in a task's folder is unpacked once, so that every run reads plain files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ..errors import UserError, did_you_mean
from ..plugins.table import table
from ..plugins.workspace import named_roots
from ..task import Task

KEYS = ("task", "split")


def prepare(words: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Unpack the splits of task=A,B that have something packed (split=A,B: those alone). Raises UserError for wrong
    words, a folder that is not named, and damaged data."""
    if wrong := [key for key in words if key not in KEYS]:
        raise UserError(f"{wrong[0]}= is not known here. {did_you_mean(wrong[0], KEYS)}")
    if "task" not in words:
        raise UserError(f"task= is missing. {did_you_mean('', table('tasks').entries)}")
    for name in words["task"].split(","):
        entry = table("tasks").get(name)
        cls: type[Task] = entry.load()
        root = named_roots().get(str(entry.facts.get("data") or entry.name))
        if root is None:
            raise UserError(f"no folder is named for {name}: vlbench data where says how to name one.")
        task = cls(Path(root), cls.Options())
        splits = list(dict.fromkeys((*cls.roles().values(), *cls.report_splits())))
        asked = words["split"].split(",") if "split" in words else splits
        for split in asked:
            if split not in splits:
                raise UserError(f"split={split} is none of task={name}. {did_you_mean(split, splits)}")
        ready = [split for split in asked if _prepared(task, split, say, needed="split" in words)]
        say(f"{name}: {', '.join(ready) if ready else 'nothing'} is ready")


def _prepared(task: Task, split: str, say: Callable[[str], None], *, needed: bool) -> bool:
    """Whether a split can be read now. needed: an incomplete one is a mistake, and not merely another that is not
    here."""
    task.prepare(split, say)
    missing = task.missing(split)
    if missing and needed:
        raise UserError("\n".join(missing))
    return not missing
