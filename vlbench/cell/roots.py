"""Where the data of a task lies on this machine, and what to do where it is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..plugins.entry import Entry
from ..plugins.workspace import WORKSPACE_FILE, named_roots, workspace
from ..task import Role, Task
from .spec import Spec

if TYPE_CHECKING:
    from ..mini.world import World

BuildProgress = Callable[[int, int], None]


def open_task(spec: Spec, progress: BuildProgress | None = None) -> Task:
    """The task on its data folder, with nothing missing of what this cell reads."""
    root = data_root(spec, progress)
    task = spec.task_class(root, spec.task_options)
    roles: list[Role] = ["train"] if spec.learns and not spec.words.train else []
    roles += ["select"] if any(link.facts.chooses for link in spec.links) else []
    wanted = [spec.split, *(task.split_for(role) for role in roles)]
    missing = list(dict.fromkeys(line for split in wanted for line in task.missing(split)))
    if missing:
        lines = [f"{spec.task.name} lacks data in {root}:", *missing, f"Put the files there, or {_remedy(spec)}"]
        raise UserError("\n".join(lines))
    for link in spec.links:
        if link.facts.checks_task:
            link.options.check_task(task)
    return task


def data_root(spec: Spec, progress: BuildProgress | None = None) -> Path:
    """The task's data folder: the mini world's cache, or the root named in vlbench.toml or VLBENCH_DATA."""
    name = _data_name(spec)
    if spec.words.suite == "mini":
        from ..mini.world import mini_root
        from .contents import verify_world

        world = mini_world(spec.task)
        root = mini_root(world, progress)
        verify_world(world, root)
        return root
    roots = named_roots()
    if name in roots:
        return Path(roots[name])
    needs = spec.task_class(Path(f"<{name}>"), spec.task_options).missing(spec.split)
    remedy = _remedy(spec)
    raise UserError("\n".join([f"where is the {name} data?", *needs, remedy[0].upper() + remedy[1:]]))


def mini_world(task: Entry) -> World:
    """The mini world of a task. Raises UserError where it has none."""
    from ..plugins.worlds import NO_WORLD, world_of

    world = world_of(task)
    if world is None:
        raise UserError(NO_WORLD.format(task=task.name))
    return world


def _data_name(spec: Spec) -> str:
    return str(spec.task.facts.get("data") or spec.task.name)


def _remedy(spec: Spec) -> str:
    """What to do about missing data."""
    name, space = _data_name(spec), workspace()
    if spec.words.suite == "mini":
        return "delete that folder, which vlbench builds anew, and run the same command again."
    where = f'{space.folder / WORKSPACE_FILE} with the lines\n[roots]\n{name} = "/path/to/{name}"\n'
    return (
        f"name the folder that has them in {where}or set VLBENCH_DATA to a folder that holds {name}/; then run the "
        "same command again. (suite=mini needs no data.)"
    )
