"""Reading annotation files: errors that say which file and which entries, and paths that stay in their folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vlbench.errors import UserError
from vlbench.paths import inside as inside

SHOWN = 5  # ids that an error names


def read_json(path: Path, fold: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The content of a JSON file. fold: applied to each object as it is read, to keep less of it."""
    try:
        return json.loads(path.read_bytes(), object_hook=fold)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON, or cut short: {error}.") from None


def refuse(ids: Iterable[str], problem: str) -> None:
    """Raise if there are such ids, naming the first few."""
    listed = sorted(ids, key=lambda text: (len(text), text))
    if listed:
        more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
        raise UserError(f"{problem}: {', '.join(listed[:SHOWN])}{more}.")
