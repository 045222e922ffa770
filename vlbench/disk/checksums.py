"""sums.json of a cell: digests of what is finished in it, so that a run takes over what it wrote itself and no other.

A seal inside a file shows a flipped bit. That a whole model, or a whole file of predictions, is another cell's only
the cell can tell: it keeps their digests beside them. What has no digest here (the run was killed before it was noted,
or an older vlbench wrote it) is taken as it is.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..errors import UserError
from .digests import MANIFEST, file_digest
from .storage import read_sealed, standing, write_sealed

SUMS = "sums.json"


def note(cell: Path, name: str) -> None:
    """The file or model folder `name` of the cell's folder is finished."""
    _write(cell, {**_read(cell), name: file_digest(_file(cell / name))})


def announce(cell: Path, name: str, text: str) -> None:
    """The file `name` is going to be written with this text, as the last that this run writes in the cell."""
    _write(cell, {**_read(cell), name: hashlib.sha256(text.encode()).hexdigest()})


def forget(cell: Path, name: str) -> None:
    """`name` is going to be written anew, or removed."""
    if name in (sums := _read(cell)):
        _write(cell, {other: sha for other, sha in sums.items() if other != name})


def take(cell: Path, name: str) -> None:
    """check(), before a run that holds the cell goes on from `name`; from then on it is noted."""
    check(cell, name)
    if name not in _read(cell):
        note(cell, name)


def check(cell: Path, name: str) -> None:
    """Raise UserError naming the file where it is not what was noted."""
    sha = _read(cell).get(name)
    file = _file(cell / name)
    if sha is not None and (not file.is_file() or file_digest(file) != sha):
        raise UserError(
            f"{file} is damaged or of another cell ({SUMS} has another digest of it): delete {cell / name} and run "
            "again."
        )


def wrong(cell: Path) -> str:
    """A sentence about the first of the finished files that is not what was noted; empty where all are."""
    try:
        for name in _read(cell):
            check(cell, name)
    except (UserError, OSError) as error:
        return str(error)
    return ""


def _file(path: Path) -> Path:
    """What stands for `path`: of a model folder its manifest, which has the digests of its files."""
    present = standing(path)
    return present / MANIFEST if present.is_dir() else present


def _read(cell: Path) -> dict[str, str]:
    file = cell / SUMS
    if not file.is_file():
        return {}
    sums = read_sealed(file)
    if sums.get("cell") != cell.absolute().name:
        raise UserError(f"{file} is of another cell ({sums.get('cell')}): delete that file's folder and run again.")
    return dict(sums["sums"])


def _write(cell: Path, sums: dict[str, str]) -> None:
    write_sealed(cell / SUMS, {"cell": cell.absolute().name, "sums": sums})
