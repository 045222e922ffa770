"""Writing files so that nothing half-written is ever read as whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import UserError

# Names that write_bytes, and new_folder in a cell's folder, give.
OURS = re.compile(r"\..+\.\d+\.tmp|\.(model|statistics)\.tmp")
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
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
        with os.fdopen(handle, "wb") as stream:
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
    """Raises UserError naming the file where it is no JSON, or a pipe, which would be waited for without end."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no file: move it away and run again.")
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
def new_folder(final: Path, *, among_others: bool = False) -> Iterator[Path]:
    """A temporary folder to fill; it takes the place of `final` where the block ends well and is removed where not.

    Raises UserError where it cannot be written; `final` is then as it was. among_others: it lies in a folder of the
    user's, where nothing that has its name is a killed run's: the temporary one has a name of its own.
    """
    temporary = final.with_name(f".{final.name}.{secrets.token_hex(4) + '.' if among_others else ''}tmp")
    try:
        if _is_left_over(temporary):
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
    gone = final.with_name(f".{final.name}.tmp")
    if _is_left_over(gone):
        shutil.rmtree(gone, ignore_errors=True)  # of a removal, or a save, that was killed
    for folder in (_previous(final), final):  # the old one first: it would stand again once `final` is gone
        if folder.exists():
            with contextlib.suppress(OSError):
                folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def _previous(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders that killed runs left, by their names; links, and what other users or
    programs call .tmp, stay. Only for who holds the folder's lease."""
    for left in folder.glob(".*.tmp"):
        if not OURS.fullmatch(left.name) or not _is_left_over(left):
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                left.unlink()


def _is_left_over(path: Path) -> bool:
    """Whether it is there, a file or folder of this user's and no link to elsewhere."""
    try:
        state = path.lstat()
    except OSError:
        return False
    mine = not hasattr(os, "geteuid") or state.st_uid == os.geteuid()
    return mine and (stat.S_ISDIR(state.st_mode) or stat.S_ISREG(state.st_mode))


def refuse_link(folder: Path) -> None:
    """Raise UserError for a cell's folder that is a link: what it leads to is not this folder's to write, or remove."""
    if folder.is_symlink():
        raise UserError(linked_folder(folder))


def linked_folder(folder: Path) -> str:
    """What is said of a cell's folder that is a link."""
    return (
        f"{folder} is a link to {folder.readlink()}, and a cell's folder is its own: move what it leads to here, or "
        "remove the link, and run again."
    )


def refuse_unwritable(folder: Path) -> None:
    """Raise UserError before any work where `folder` cannot be written, or not be made. Nothing is left behind: what is
    asked is the folder, or the nearest one above it that is there."""
    try:
        place = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror}. Choose another folder with --runs.") from error
