"""Where the committed leaderboards lie."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..errors import UserError


def boards_folder() -> Path:
    """The leaderboards that ship with this installation (in a checkout: leaderboards/)."""
    spec = importlib.util.find_spec("vlbench.leaderboards")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("this installation lacks vlbench.leaderboards: reinstall vlbench.")
    return Path(next(iter(spec.submodule_search_locations)))
