"""One worker a cell: a lease file that appears whole, kept warm by a heartbeat."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RunFailed, UserError
from .storage import sweep

HEARTBEAT = 5.0  # seconds between two signs of life
EXPIRES = 60.0  # seconds of silence, watched by us, after which a holder on another machine is taken for dead
OLD = 3600.0  # age by the clocks at which two heartbeats are watched for, and no longer
POLL = 0.5  # seconds between two looks at another's lease
# What a file system without hard links (FAT, some FUSE mounts) answers; creating the file exclusively is left.
NO_LINKS = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class LeaseLost(RunFailed):
    """This machine gave no sign of life for so long (it slept, or was paused) that another took its cell over."""


@dataclass(frozen=True)
class Holder:
    """Who works on a cell. since: by the clock of that machine; None where the lease does not say."""

    host: str
    pid: int | None
    since: float | None


def held(folder: Path) -> Holder | None:
    """Who works on the cell in `folder`, at one look. On this machine that is exact. Elsewhere it is whoever gave a
    sign of life within EXPIRES of now, before or after: where clocks differ by more, or have just jumped, the look is
    wrong and no more than that, for nobody takes a lease over on account of it."""
    try:
        text, beaten = _look(folder / "lease.json")
    except OSError:
        return None
    if text is None:
        return None
    alive = _alive(text)
    if alive is False or (alive is None and abs(time.time() - beaten) > EXPIRES):
        return None
    holder = _read(text)
    pid, since = holder.get("pid"), holder.get("since")
    return Holder(
        str(holder.get("machine", "unknown")).split(" ")[0],
        pid if isinstance(pid, int) else None,
        float(since) if isinstance(since, int | float) else None,
    )


@contextmanager
def lease(
    folder: Path, done: Callable[[], bool], tell: Callable[[str], None], lost: threading.Event | None = None
) -> Iterator[bool]:
    """Hold the cell in `folder`. Yields True to the one worker that holds it, False where another finished it first.
    lost: set within HEARTBEAT once the cell is another's; who holds it looks there before each step.

    A dead holder's lease is taken over: at once where its process is gone from this machine, after EXPIRES otherwise
    (after two heartbeats where the last one is OLD). A live holder's is never stolen; this call waits for it.
    """
    file = folder / "lease.json"
    first = not folder.parent.exists()
    try:
        mine = _wait(file, done, tell)
    except OSError as error:
        raise UserError(
            f"cannot write in {folder}: {error.strerror or error}. Choose another folder with --runs."
        ) from error
    if mine is None:
        yield False
        return
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(file, mine, stop, lost or threading.Event()), daemon=True)
    beat.start()
    try:
        sweep(folder)
        yield not done()
    finally:
        stop.set()
        beat.join()
        _remove(file, mine)
        with contextlib.suppress(OSError):
            folder.rmdir()  # only where nothing was written: a refused model leaves no empty folder
            if first:
                folder.parent.rmdir()


def _wait(file: Path, done: Callable[[], bool], tell: Callable[[str], None]) -> str | None:
    """The text of our lease once we hold it, None where the cell was finished meanwhile."""
    last_look: tuple[str | None, float] = (None, 0.0)
    since = time.monotonic()
    said = False
    while (mine := _claim(file)) is None:
        if done():
            return None
        look = _look(file)
        if look != last_look:
            last_look, since = look, time.monotonic()
        text, beaten = look
        if text is None:
            continue  # it went away between our two looks
        silent = EXPIRES if time.time() - beaten < OLD else 2 * HEARTBEAT  # clocks may be set, and differ by hours
        alive = _alive(text)
        if alive is False or (alive is None and time.monotonic() - since > silent):
            _remove(file, text)
            continue
        if not said:
            said = True
            tell(f"another vlbench works on this cell ({_holder(text)}); waiting for it")
        time.sleep(POLL)
    return mine


def _claim(file: Path) -> str | None:
    """Become the holder: the text of the lease, or None where there is one. Created under another name and linked, so
    that no reader (and no later run, where we are killed here) finds an empty lease."""
    pid = os.getpid()
    holder = {"machine": _machine(), "pid": pid, "started": _started(pid), "token": secrets.token_hex(8)}
    text = json.dumps({**holder, "since": round(time.time(), 1)})
    draft = file.with_name(f".{file.name}.{pid}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        if file.parent.is_file():
            raise
        return None  # the folder went away between mkdir's two looks: a holder that wrote nothing has just left
    except FileNotFoundError:
        file.parent.mkdir(parents=True, exist_ok=True)  # so did the folder of all cells, which that holder had made
    try:
        draft.write_text(text, encoding="utf-8")
        os.link(draft, file)
    except FileExistsError:
        return None
    except FileNotFoundError:
        return None  # another has just swept our draft, or removed the folder that it leaves empty
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return text if _create(file, text) else None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
    return text


def _create(file: Path, text: str) -> bool:
    try:
        handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
    return True


def _machine() -> str:
    """Where a process number means one process: host, boot, and process namespace (containers may share the rest)."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _started(pid: int) -> str:
    """When a process started (it tells a process from a later one of the same number); empty where there is none.

    A zombie has ended: in a container without an init nobody collects a killed run, and it would hold for ever.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        if Path("/proc/self/stat").exists():
            return ""
    try:  # no /proc (macOS): signal 0 only asks
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass
    return "running"


def _look(file: Path) -> tuple[str | None, float]:
    """Text and last heartbeat. Opened, because NFS answers a plain stat from a cache that may be a minute old."""
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            return stream.read(), os.fstat(stream.fileno()).st_mtime
    except FileNotFoundError:
        return None, 0.0


def _read(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _holder(text: str) -> str:
    holder = _read(text)
    return f"process {holder.get('pid')} on {str(holder.get('machine')).split(' ')[0]}"


def _alive(text: str) -> bool | None:
    """Whether the holder is known to live or to be gone, which takes a process of this machine. None: nothing is known
    of it but its silence."""
    holder = _read(text)
    if holder.get("machine") != _machine() or not isinstance(holder.get("pid"), int):
        return None
    return _started(holder["pid"]) == holder.get("started")


def _remove(file: Path, text: str) -> None:
    """Remove the lease that says `text` and no other: of several who find a dead one, the second would otherwise
    remove what the first has just created."""
    with contextlib.suppress(FileNotFoundError), _alone(file.parent):
        if _look(file)[0] == text:
            file.unlink()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """A kernel lock on the folder, freed when its holder dies. Where the file system has none a race of microseconds
    between two who take over the same dead lease remains."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _beat(file: Path, mine: str, stop: threading.Event, lost: threading.Event) -> None:
    """Signs of life, while the lease is ours: a machine that slept for minutes may have lost it to another."""
    while not stop.wait(HEARTBEAT):
        with contextlib.suppress(OSError):
            text = _look(file)[0]
            if text is None:
                continue  # another has removed it, and is about to write its own; or the folder was deleted
            if text != mine:
                return lost.set()
            os.utime(file)
    return None
