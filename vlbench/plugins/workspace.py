"""The user's own folder of plug-ins and data: that of the nearest vlbench.toml.

Plug-ins are code. As git does, vlbench uses a folder above only where it and its files belong to who runs the command;
another's must be named with --workspace (or VLBENCH_WORKSPACE, which workers inherit).
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

WORKSPACE_FILE = "vlbench.toml"
WORKSPACE_MODULES = "vlbench_workspace"
ALLOWED = "VLBENCH_WORKSPACE"  # folders that the user allowed, os.pathsep between them
TOLD = "workspaces"  # in the user's cache: the folders whose code was announced


def boards_folder() -> Path:
    """The leaderboards that ship with this installation (in a checkout: leaderboards/)."""
    spec = importlib.util.find_spec("vlbench.leaderboards")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("this installation lacks vlbench.leaderboards: reinstall vlbench.")
    return Path(next(iter(spec.submodule_search_locations)))


@dataclass(frozen=True)
class Workspace:
    """The folder of the nearest vlbench.toml, and what it says ([roots] coco = ..., imagenet = ..., weights = ...)."""

    folder: Path
    roots: Mapping[str, str]
    present: bool = True


def workspace(start: Path | None = None) -> Workspace:
    """The nearest folder upwards with a vlbench.toml; else an empty one here. Raises UserError where it is another
    user's and was not allowed."""
    try:
        here = (start or Path.cwd()).resolve()
    except OSError as error:
        raise UserError(f"the current folder is gone or cannot be read ({error.strerror}): cd to another.") from None
    for folder in (here, *here.parents):
        file = folder / WORKSPACE_FILE
        if file.is_file():
            refuse_foreign(folder, folder, file)
            return Workspace(folder, _read_roots(file))
    return Workspace(here, {}, present=False)


def refuse_foreign(space: Path, *paths: Path) -> None:
    """Raise UserError where one of the paths, or what it links to, is another user's, unless the workspace was
    allowed by its name."""
    if not hasattr(os, "geteuid") or _allowed(space):
        return
    owners = {os.geteuid(), *([int(os.environ.get("SUDO_UID", "0"))] if os.geteuid() == 0 else [])}
    for path in paths:
        for status in (path.lstat(), path.stat()):
            if status.st_uid not in owners:
                raise UserError(
                    f"{path} belongs to another user, and its workspace could run code of theirs: if you trust it, run "
                    f"`vlbench --workspace {space} ...`; if not, work in a folder that is not below {space}."
                )


def _allowed(space: Path) -> bool:
    names = filter(None, os.environ.get(ALLOWED, "").split(os.pathsep))
    return any(os.path.realpath(name) == os.path.realpath(space) for name in names)


def allow(folder: Path) -> None:
    """--workspace: for this process and those that it starts."""
    if not (folder / WORKSPACE_FILE).is_file():
        raise UserError(f"--workspace {folder} has no {WORKSPACE_FILE}: name the folder that holds one.")
    names = [*filter(None, os.environ.get(ALLOWED, "").split(os.pathsep)), str(folder.resolve())]
    os.environ[ALLOWED] = os.pathsep.join(dict.fromkeys(names))


def announce(folder: Path) -> None:
    """Say once for each folder, ever, that code of it is run. Where no cache can be written: once a process. Nothing is
    said of a folder that the user has named with --workspace."""
    if _allowed(folder):
        return
    name = str(folder)
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vlbench" / TOLD
        if cache.is_file() and name in cache.read_text(encoding="utf-8").splitlines():
            return
        cache.parent.mkdir(parents=True, exist_ok=True)
        with cache.open("a", encoding="utf-8") as stream:
            stream.write(f"{name}\n")
    except (OSError, ValueError, RuntimeError):  # a machine without a home
        pass
    print(
        f"vlbench: plug-ins of {folder} are run as code (its {WORKSPACE_FILE} makes it a workspace).", file=sys.stderr
    )


def _read_roots(file: Path) -> dict[str, str]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:  # no TOML, no UTF-8, or a number of 5,000 digits
        raise UserError(f"{file} cannot be read as TOML ({error}): mend it.") from error
    unknown = [key for key in content if key != "roots"]
    if unknown:
        raise UserError(f"{file} has {unknown[0][:80]!r}, but knows only the table [roots]: mend it.")
    roots = content.get("roots", {})
    if not isinstance(roots, dict) or not all(isinstance(v, str) for v in roots.values()):
        raise UserError(f'{file}: [roots] should hold lines like imagenet = "/data/imagenet".')
    return {name: _folder(file, name, value) for name, value in roots.items()}


def _folder(file: Path, name: str, value: str) -> str:
    """The folder that a line of [roots] names, which need not exist."""
    try:
        folder = str(file.parent / Path(value).expanduser())
        if "\0" in folder or any(len(os.fsencode(part)) > 255 for part in Path(folder).parts) or len(folder) > 4095:
            raise ValueError("no folder can have that name")
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"{file}: {name[:80]} = {value[:80]!r} names no folder ({error}): mend it.") from None
    return folder


def package_folder(name: str) -> Path:
    """Where vlbench.NAME lies: the registry, tasks, methods or leaderboards of this installation."""
    spec = importlib.util.find_spec(f"vlbench.{name}")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"this installation lacks vlbench.{name}: reinstall vlbench.")
    return Path(next(iter(spec.submodule_search_locations)))


def named_roots() -> Mapping[str, str]:
    """Name -> folder, as vlbench.toml says; else the folder of that name in VLBENCH_DATA."""
    roots = dict(workspace().roots)
    data = Path(os.environ.get("VLBENCH_DATA") or os.devnull).expanduser()
    if data.is_dir():
        roots = {**{p.name: str(p) for p in data.iterdir() if p.is_dir()}, **roots}
    return roots
