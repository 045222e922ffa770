"""Runs by their names, as the verbs of finished runs take them."""

from __future__ import annotations

from pathlib import Path

from ..disk.storage import refuse_link
from ..errors import UserError, did_you_mean

NAMED = 5  # runs in a sentence that asks for more of a name


def run_of(name: str, runs: Path) -> Path:
    """The folder of a run by its folder, its name or the beginning of it. Raises UserError where there is none, where
    several begin so, and for a folder that is a link."""
    folder = Path(name) if (Path(name) / "cell.json").is_file() else runs / _named(name, runs)
    refuse_link(folder)
    return folder


def _named(name: str, runs: Path) -> str:
    """The one run in `runs` whose name is, or begins with, `name`."""
    cells = sorted(p.parent.name for p in runs.glob("*/cell.json"))
    fitting = [run for run in cells if run.startswith(name)] if name not in cells else [name]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        more = f" and {len(fitting) - NAMED} more" if len(fitting) > NAMED else ""
        raise UserError(f"{name!r} begins the names of {', '.join(fitting[:NAMED])}{more}: give more of one of them.")
    raise UserError(f"there is no run {name!r} in {runs}. {did_you_mean(name, cells)}")
