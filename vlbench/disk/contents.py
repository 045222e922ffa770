"""Digests of many files, each of which is read once: what a number was measured on is known by its content.

50,000 photos are 5.5 GB. They are hashed by threads when they are first asked for, and the digests are kept in a small
database in the user's cache, each with what tells that its file is still the same: path, size, inode, and the times of
its content and of its inode. The second of these times is set by the kernel alone, so that a file which was overwritten
by another of its size, with its old date put back, is read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ..errors import UserError

T = TypeVar("T")
Progress = Callable[[int, int], None]  # (files done, files in all)
State = tuple[int, int, int, int]  # size, time of the content, time of the inode, inode: times in nanoseconds

ABSENT = ""  # the digest of a file that is not there, or cannot be opened: its samples fail when they are evaluated
AT_ONCE = 2000  # files between two writes of the database, which are all that a kill loses
# A file that changed less than this before it was read may change again within one tick of its file system's clock
# (FAT's is two seconds): its digest is used, and not kept.
SETTLED = 2_000_000_000
BUSY = 20.0  # seconds to wait for another process that writes the database
TABLE = (
    "CREATE TABLE IF NOT EXISTS files (folder TEXT, name TEXT, size INT, changed INT, inode_changed INT, inode INT, "
    "sha BLOB, PRIMARY KEY (folder, name)) WITHOUT ROWID"
)


class Contents:
    """sha256 of files by content. database: where digests are kept; one that cannot be used is done without, and one
    that is damaged is begun anew, because all that is in it can be had again."""

    def __init__(self, database: Path) -> None:
        self.database = database

    def digests(self, paths: Iterable[Path], progress: Progress = lambda done, total: None) -> dict[Path, str]:
        """Path -> sha256 in hex, ABSENT where there is no such file. Raises UserError for what is no regular file (a
        fifo would be waited for without end)."""
        states = {path: _state(path) for path in dict.fromkeys(paths)}
        kept = self._kept(states)
        digests = {path: kept.get(path, ABSENT) for path in states}
        todo = [path for path, state in states.items() if state is not None and path not in kept]
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1), thread_name_prefix="digest") as pool:
            for first in range(0, len(todo), AT_ONCE):
                part = todo[first : first + AT_ONCE]
                new = dict(zip(part, pool.map(_read, part), strict=True))
                digests |= {path: sha for path, (sha, _) in new.items()}
                self._keep({path: (sha, states[path]) for path, (sha, after) in new.items() if after == states[path]})
                progress(first + len(part), len(todo))
        return digests

    def _kept(self, states: dict[Path, State | None]) -> dict[Path, str]:
        """The digests of those files that are as they were when they were read."""
        names: defaultdict[Path, list[Path]] = defaultdict(list)
        for path in states:
            names[path.parent].append(path)

        def look(connection: sqlite3.Connection) -> dict[Path, str]:
            kept: dict[Path, str] = {}
            query = "SELECT name, size, changed, inode_changed, inode, sha FROM files WHERE folder = ?"
            for folder, members in names.items():
                rows = {name: (tuple(state), sha) for name, *state, sha in connection.execute(query, (_key(folder),))}
                for path in members:
                    state, sha = rows.get(path.name, (None, b""))
                    if state is not None and state == states[path]:
                        kept[path] = sha.hex()
            return kept

        return self._in_transaction(look) or {}

    def _keep(self, new: dict[Path, tuple[str, State | None]]) -> None:
        now = time.time_ns()
        rows = [
            (_key(path.parent), path.name, *state, bytes.fromhex(sha))
            for path, (sha, state) in new.items()
            if state is not None and now - max(state[1], state[2]) > SETTLED
        ]
        query = "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)"
        self._in_transaction(lambda connection: connection.executemany(query, rows))

    def _in_transaction(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """What `work` gives; None where the database cannot be used: what is not kept is computed again."""
        try:
            self.database.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(self.database, timeout=BUSY)) as connection, connection:
                connection.execute(TABLE)
                return work(connection)
        except (OSError, sqlite3.OperationalError):
            return None  # read-only, full, locked for BUSY, or a file system without locks
        except sqlite3.DatabaseError:
            with contextlib.suppress(OSError):
                self.database.unlink()
            return None


def digest_of(paths: Sequence[Path], digests: dict[Path, str]) -> str:
    """One digest of the contents of many files, in their order, whatever their names."""
    sha = hashlib.sha256()
    for path in paths:
        sha.update(f"{digests[path]}\n".encode())
    return sha.hexdigest()


def _key(folder: Path) -> str:
    return os.path.abspath(folder)  # noqa: PTH100 - of 50,000 files in 1,000 folders; nothing is looked up


def _state(path: Path) -> State | None:
    """None where there is no such file."""
    try:
        status = os.stat(path)  # noqa: PTH116 - of 50,000 files: pathlib doubles the time
    except (OSError, ValueError):
        return None
    if stat.S_ISDIR(status.st_mode):
        return None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is no regular file (a fifo, a socket or a device): take it out of the data.")
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _read(path: Path) -> tuple[str, State | None]:
    """Digest of a file, and its state afterwards: of one that was written meanwhile it differs from that before."""
    try:
        with path.open("rb") as stream:
            sha = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ABSENT, None
    return sha, _state(path)
