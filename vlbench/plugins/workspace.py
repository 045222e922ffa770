"""Where the committed leaderboards lie."""

from __future__ import annotations

import importlib.util
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

WORKSPACE_FILE = "vlbench.toml"
WORKSPACE_MODULES = "vlbench_workspace"


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
    """The nearest folder upwards with a vlbench.toml; else an empty one here."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        file = folder / WORKSPACE_FILE
        if file.is_file():
            return Workspace(folder, {k: str(folder / Path(v).expanduser()) for k, v in _read_roots(file).items()})
    return Workspace(here, {}, present=False)


def _read_roots(file: Path) -> dict[str, str]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file} cannot be read as TOML ({error}): mend it.") from error
    unknown = [key for key in content if key != "roots"]
    if unknown:
        raise UserError(f"{file} has {unknown[0]!r}, but knows only the table [roots]: mend it.")
    roots = content.get("roots", {})
    if not isinstance(roots, dict) or not all(isinstance(v, str) for v in roots.values()):
        raise UserError(f'{file}: [roots] should hold lines like imagenet = "/data/imagenet".')
    return roots


def package_folder(name: str) -> Path:
    """Where vlbench.NAME lies: the registry, tasks, methods or leaderboards of this installation."""
    spec = importlib.util.find_spec(f"vlbench.{name}")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"this installation lacks vlbench.{name}: reinstall vlbench.")
    return Path(next(iter(spec.submodule_search_locations)))
