"""One worker a cell: a lease file, created exclusively and kept warm by a heartbeat."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import UserError

HEARTBEAT = 5.0  # seconds between two signs of life
EXPIRES = 60.0  # seconds of silence after which a holder on another machine is taken for dead


@contextmanager
def lease(folder: Path, done: Callable[[], bool], tell: Callable[[str], None]) -> Iterator[bool]:
    """Hold the cell in `folder`. Yields True to the one worker that holds it, False where another finished it first.

    A dead holder's lease is taken over: at once where its process is gone from this machine, after EXPIRES otherwise.
    A live holder's is never stolen; this call waits for it.
    """
    file = folder / "lease.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror}. Choose another folder with --runs.") from error
    told = False
    while not _create(file):
        if done():
            yield False
            return
        if _abandoned(file):
            _take_away(file)
            continue
        if not told:
            told = True
            tell(f"another vlbench works on this cell ({_holder(file)}); waiting for it")
        time.sleep(0.5)
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(file, stop), daemon=True)
    beat.start()
    try:
        yield not done()
    finally:
        stop.set()
        beat.join()
        file.unlink(missing_ok=True)


def _create(file: Path) -> bool:
    me = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
    try:
        handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    except OSError as error:
        raise UserError(
            f"cannot write in {file.parent}: {error.strerror}. Choose another folder with --runs."
        ) from error
    with os.fdopen(handle, "w") as stream:
        json.dump(me, stream)
    return True


def _started(pid: int) -> str:
    """What tells a process from a later one of the same number (Linux: its start time); empty where unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def _holder(file: Path) -> str:
    found = _read(file)
    return f"process {found.get('pid')} on {found.get('host')}"


def _abandoned(file: Path) -> bool:
    try:
        silent = time.time() - file.stat().st_mtime
    except OSError:
        return False
    found = _read(file)
    if found.get("host") == socket.gethostname() and found.get("started"):
        return _started(int(found["pid"])) != found["started"]
    return silent > EXPIRES


def _take_away(file: Path) -> None:
    """Move the dead lease aside; of several who try, one succeeds, and all go on to create their own."""
    grave = file.with_name(f".{file.name}.{os.getpid()}.dead")
    with contextlib.suppress(FileNotFoundError):
        file.rename(grave)
        grave.unlink()


def _beat(file: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT):
        with contextlib.suppress(OSError):
            os.utime(file)
