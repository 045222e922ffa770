"""Whether any code changed that words are resolved by: the package's own files, and plug-ins from outside it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..disk.storage import digest
from .entry import reading_once
from .kinds import FOLDERS, Kind
from .table import table
from .workspace import package_folder

# A file that changed less than this before it was looked at may change again within one tick of its file system's
# clock (FAT's is two seconds): what was made with it is not kept.
SETTLED = 2_000_000_000
CODE = (".py", ".json")
RESOLVED_BY: tuple[Kind, ...] = ("tasks", "models", "methods", "capabilities")


@dataclass(frozen=True)
class CodeState:
    """digest: another one where a file of the package, a plug-in from outside, or Python is another one. settled:
    whether the package's files are so old that a change of them would be seen."""

    digest: str
    settled: bool


def code_state() -> CodeState:
    """As it is now. Of the package's files the path, size, times and inode are taken, of other plug-ins the content."""
    states = sorted({state for folder in package_folders() for state in _states(os.fspath(folder))})
    with reading_once():
        sha = digest([sys.version, states, _strangers()])
    newest = max(max(content, inode) for _, _, content, inode, _ in states)
    return CodeState(sha, time.time_ns() - newest > SETTLED)


def package_folders() -> list[Path]:
    """Where the package's code lies: in a checkout, its plug-ins lie beside it."""
    return [Path(__file__).resolve().parents[1], *(package_folder(name) for name in FOLDERS.values())]


def _strangers() -> list[list[object]]:
    """Every plug-in from outside the package."""
    entries = (entry for kind in RESOLVED_BY for entry in table(kind).entries.values() if not entry.built_in)
    return [[e.kind, e.name, e.module, str(e.file), e.digest(), repr(e.facts)] for e in entries]


def _states(folder: str) -> Iterator[tuple[str, int, int, int, int]]:
    """(path, size, times of content and inode, inode) of the code below a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                if not entry.name.startswith((".", "__pycache__")):
                    yield from _states(entry.path)
            elif entry.name.endswith(CODE):
                status = entry.stat()
                yield entry.path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
