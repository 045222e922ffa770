"""Reading annotation files: errors that say which file and which entries, and paths that stay in their folder.

What a file says is of a kind: an id is a whole number or a text, a question is a text. JSON has more kinds, and Python
makes a text of each: null would be the question "None", true the id 1, 1e400 an id that is infinite.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vlbench.disk.paths import inside as inside
from vlbench.errors import UserError

YEARS = ("2014", "2015", "2017")  # of COCO's image folders
SHOWN = 5  # ids that an error names
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def whole_number(value: Any) -> int:
    """A whole number, also as a text. Raises ValueError for what is none: null, a list, 1.0, true, Infinity."""
    if type(value) is int:
        return value
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 40:
        return int(value)
    raise ValueError(f"{value!r} is no whole number")


def identifier_of(value: Any) -> str:
    """An id: a text that is not blank, or a whole number. Raises ValueError."""
    if type(value) is int or (isinstance(value, str) and value.strip()):
        return str(value)
    raise ValueError(f"{value!r} is no id")


def text_of(value: Any) -> str:
    """A text. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def answer_of(value: Any) -> str:
    """An answer: a text, or a number. Raises ValueError."""
    if isinstance(value, str) or (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    ):
        return str(value)
    raise ValueError(f"{value!r} is no answer")


def texts_of(value: Any) -> tuple[str, ...]:
    """A list of texts. Raises ValueError; a text alone would be a list of its letters."""
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is no list")
    return tuple(map(text_of, value))


def read_json(path: Path, fold: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The content of a JSON file. fold: applied to each object as it is read, to keep less of it. Raises UserError for
    what is no JSON, and where an object has a key twice: of two questions with one id, JSON drops the first in silence.
    """
    refuse_special(path)

    def whole(pairs: list[tuple[str, Any]]) -> Any:
        row = dict(pairs)
        if len(row) < len(pairs):
            raise ValueError(
                f"an object has {next(k for k, n in Counter(k for k, _ in pairs).items() if n > 1)!r} twice"
            )
        return fold(row) if fold is not None else row

    try:
        return json.loads(path.read_bytes(), object_pairs_hook=whole)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON, or cut short: {error}.") from None


def refuse_special(path: Path) -> None:
    """Raise UserError for a pipe, a socket or a device, which would be waited for without end."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no file: put the benchmark's own there.")


def read_text(path: Path) -> str:
    """A text file in UTF-8, a byte order mark left out. Raises UserError where it is none."""
    refuse_special(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None


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
