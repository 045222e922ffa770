"""Paths that data name: relative, and inside the folder that they are of."""

from __future__ import annotations

from pathlib import PurePosixPath

from ..errors import UserError


def inside(name: str, source: object, what: str = "image") -> PurePosixPath:
    """The relative path `name` that `source` (a file, or words for it) names. Raises UserError where it would leave the
    data folder, and TypeError where it is no text."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not path.name:
        raise UserError(f"{source} names the {what} {name!r}, which is no file inside the data folder: correct it.")
    return path
