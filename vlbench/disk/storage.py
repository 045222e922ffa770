"""Writing files so that nothing half-written is ever read as whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import UserError

SEAL = "seal"  # key of a sealed JSON file that holds the digest of all others
# What some network file systems answer to an fsync of a folder: they have nothing to do, or do it anyway.
NOT_NEEDED = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM)


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: the text that digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any) -> str:
    """sha256 of canonical(value)."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """write_bytes of the text in UTF-8, its line ends as they are."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write under a temporary name, fsync, rename: readers see the old file or the new one. Raises UserError where
    the folder cannot be written or the disk is full."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> UserError:
    """The sentence for a full disk, a read-only folder, a file where a folder should be."""
    return UserError(f"cannot write {path}: {error.strerror or error}. Free some space or choose another folder.")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """What write_json writes."""
    return json.dumps(value, indent=1, sort_keys=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Raises UserError naming the file where it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and run again.") from error


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """JSON with its own digest in it, so that a flipped bit is noticed."""
    plain = json.loads(canonical(value))  # tuples and integer keys as they will be read: the digest is of that
    write_json(path, {**plain, SEAL: digest(plain)})


def read_sealed(path: Path) -> dict[str, Any]:
    """What write_sealed wrote. Raises UserError naming the file where it is no JSON or not what was written."""
    value = read_json(path)
    if not isinstance(value, dict) or value.pop(SEAL, None) != digest(value):
        raise UserError(f"{path} is damaged (its digest differs): delete its folder and run again.")
    return value


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NOT_NEEDED:
            raise
    finally:
        os.close(handle)


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A temporary folder to fill; it takes the place of `final` where the block ends well and is removed where not.

    Raises UserError where it cannot be written; `final` is then as it was.
    """
    temporary = final.with_name(f".{final.name}.tmp")
    try:
        if temporary.exists():
            shutil.rmtree(temporary)  # a killed run's
        temporary.mkdir(parents=True)
        yield temporary
        replace_folder(temporary, final)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)  # what fills a disk is given back
        raise cannot_write(final, error) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def replace_folder(temporary: Path, final: Path) -> None:
    """Put a finished folder in the place of `final`. Killed at any moment, standing(final) is the old or the new one.

    Folders cannot be exchanged in one step everywhere, so that the old one waits under another name until the new one
    is in place. Two rules keep it whole: it is removed only while `final` stands, and it never replaces `final`.
    """
    for file in temporary.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
    sync_folder(temporary)
    previous = _previous(final)
    if final.exists():
        if previous.exists():
            shutil.rmtree(previous)
        final.rename(previous)
    temporary.rename(final)
    sync_folder(final.parent)
    shutil.rmtree(previous, ignore_errors=True)  # what is left of it is removed the next time


def standing(final: Path) -> Path:
    """The folder to read: `final`, or the one it was about to replace where a run was killed between the two steps."""
    previous = _previous(final)
    return previous if previous.is_dir() and not final.exists() else final


def remove_folder(final: Path) -> None:
    """Remove a folder that replace_folder made. Killed at any moment, standing(final) is the whole folder or none."""
    for folder in (_previous(final), final):  # the old one first: it would stand again once `final` is gone
        if folder.exists():
            gone = final.with_name(f".{final.name}.tmp")
            shutil.rmtree(gone, ignore_errors=True)
            with contextlib.suppress(OSError):
                folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def _previous(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders that killed runs left. Only for who holds the folder's lease."""
    for left in folder.glob(".*.tmp"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                left.unlink()


def refuse_unwritable(folder: Path) -> None:
    """Raise UserError before any work where `folder` cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror}. Choose another folder with --runs.") from error
