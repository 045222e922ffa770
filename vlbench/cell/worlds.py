"""A mini world on disk against the one that its generator makes, file by file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..disk.storage import digest
from ..mini.world import World, files_below
from .contents import contents, refuse_other_files, silent

ALIKE = 8  # grey levels between the same picture written by two versions of libjpeg
DRAWN = (".jpg", ".jpeg", ".png")
_SOUND: set[str] = set()  # digests of folders that were compared in this process: a sweep's runs share their world


@dataclass(frozen=True)
class Compared:
    """Names of files: all that the generator makes, those that lack, those that are others, those that are no part."""

    made: tuple[str, ...]
    missing: tuple[str, ...]
    differing: tuple[str, ...]
    strays: tuple[str, ...]


def compared(world: World, folder: Path, progress: Callable[[int, int], None] = silent) -> Compared:
    """Build the world beside `folder`, which proves the pinned digest, and compare every file (3 to 30 seconds)."""
    with tempfile.TemporaryDirectory(prefix=f".{world.name}-verify-", dir=folder.parent) as draft:
        new = Path(draft) / world.name
        world.build(new, progress)
        wanted, present = files_below(new), files_below(folder)
        differing = (name for name, path in wanted.items() if name in present and not _same(path, present[name]))
        return Compared(
            tuple(wanted),
            tuple(sorted(wanted.keys() - present.keys())),
            tuple(sorted(differing)),
            tuple(sorted(present.keys() - wanted.keys())),
        )


def refuse_other_world(world: World, folder: Path) -> None:
    """Raise UserError, naming files, where the folder is not what the generator makes, whatever its list says."""
    files = files_below(folder)
    digests = contents().digests(files.values())
    here = digest([world.digest, {name: digests[path] for name, path in files.items()}])
    if here not in _SOUND:
        changes = compared(world, folder)
        refuse_other_files(world, folder, sorted({*changes.missing, *changes.differing, *changes.strays}))
        _SOUND.add(here)


def _same(new: Path, old: Path) -> bool:
    """Equal bytes; of a picture equal pixels, of a JPEG but for what versions of libjpeg differ by."""
    if new.read_bytes() == old.read_bytes():
        return True
    if new.suffix.lower() not in DRAWN:
        return False
    from ..images.pipeline import decode

    try:
        a, b = decode(new).int(), decode(old).int()
    except OSError:
        return False
    most = 0 if new.suffix.lower() == ".png" else ALIKE
    return a.shape == b.shape and int((a - b).abs().max()) <= most
