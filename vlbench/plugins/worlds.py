"""The mini worlds that tasks bring: what `Task.mini_world` says, asked of the table and checked."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from ..errors import UserError
from ..mini.world import World
from .entry import Entry
from .table import table

LEGAL = r"[A-Za-z0-9][\w-]*"  # names of folders
PINNED = r"[0-9a-f]{64}|"  # nothing: not pinned yet, and the message of its first build says what to pin


NO_WORLD = "suite=mini has no data for task={task}: write suite=full."


def world_of(entry: Entry) -> World | None:
    """The mini world of a task, None where it has none. Raises UserError, which names the file, where it is no world.

    The folder of a world from outside the package carries its digest: two strangers may take one name, and neither
    takes the place of a built-in's.
    """
    cls = entry.load()
    try:
        world = cls.mini_world()
    except Exception as error:
        raise UserError(f"{entry.file}: mini_world() raises {type(error).__name__}: {error}. Mend it.") from error
    if world is None:
        return None
    if not isinstance(world, World):
        raise UserError(
            f"{entry.file}: mini_world() returns {type(world).__name__}, not a World of vlbench.mini.world."
        )
    if not re.fullmatch(LEGAL, world.name) or not re.fullmatch(PINNED, world.digest):
        raise UserError(
            f"{entry.file}: the mini world {world.name!r} with digest {world.digest!r} should have a name of letters, "
            "digits, _ and -, and a SHA-256 in 64 hex digits (leave it empty, and the first build says which)."
        )
    return world if entry.built_in else replace(world, name=f"{world.name}-{world.digest[:12]}")


def worlds(entries: Iterable[Entry] | None = None) -> dict[str, World]:
    """Task -> its mini world, of these tasks or of all, without those that have none."""
    chosen = table("tasks").entries.values() if entries is None else entries
    pairs = ((entry.name, world_of(entry)) for entry in chosen)
    return {name: world for name, world in pairs if world is not None}
