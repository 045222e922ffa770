"""Reading annotation files: errors that say which file and which entries, and paths that stay in their folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vlbench.disk.paths import inside as inside
from vlbench.errors import UserError

YEARS = ("2014", "2015", "2017")  # of COCO's image folders
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


def other_year(root: Path, folder: str) -> str:
    """What to add to a sentence on COCO's `folder` (val2014), which `root` lacks: that another year's is there."""
    for year in YEARS:
        other = folder[:-4] + year
        if other != folder and any((place / other).is_dir() for place in (root, root / "images")):
            return f": the {other} that is there is COCO {year}, which names its files differently"
    return ""
