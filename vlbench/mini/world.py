"""The mini world on disk, in the official layouts of the data sets, so that the real readers read it.

A task brings its world (`Task.mini_world`), and with it the digest that it must have: of the rendered pixels and every
text file. A world is built once into the user's cache, and a generator cannot change unless its digest changes with it.
Beside its files lies the list of their digests as they were built, by which a run sees that none was changed since.
"""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import RunFailed
from .writer import WORLD_VERSION, Progress, Writer

MARKER = "COMPLETE"
FILES = "FILES"  # {"files": {name: sha256}} of a world, but for these two


@dataclass(frozen=True)
class World:
    """What suite=mini reads for a task.

    name: of its folder in the cache; tasks that share a world return the same one. images: how many `write` draws, for
    the progress line. write: draws images and writes files through the writer, the same ones on every machine. digest:
    the SHA-256 that they come out with, which enters the identity of every cell that reads them; the message of a build
    that does not fit says which one it is.
    """

    name: str
    images: int
    write: Callable[[Writer], None]
    digest: str

    def build(self, root: Path, progress: Progress | None = None) -> None:
        """Write the world under `root`, and seal it. Raises RunFailed where it does not come out as pinned."""
        writer = Writer(root, self.images, progress)
        self.write(writer)
        if writer.digest() != self.digest:
            raise RunFailed(
                f"The mini data set {self.name!r} came out with digest {writer.digest()}, expected {self.digest} "
                f"(world version {WORLD_VERSION}). If its generator was changed on purpose, pin the new digest where "
                "the task says its mini_world()."
            )
        (root / MARKER).write_text(self.digest + "\n", encoding="ascii")

    def is_built(self, folder: Path) -> bool:
        """Whether the folder holds this world, whole. One of an older vlbench, which did not list its files, is built
        anew once."""
        try:
            return (folder / MARKER).read_bytes().strip() == self.digest.encode() and (folder / FILES).is_file()
        except OSError:
            return False


def mini_root(world: World, progress: Progress | None = None) -> Path:
    """The folder of a mini world, built on first use."""
    final = worlds_folder() / world.name
    if not world.is_built(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        # A sibling, so that the rename stays within one file system and is atomic.
        draft = final.with_name(f".{world.name}-{uuid.uuid4().hex}")
        try:
            world.build(draft, progress)
            list_files(draft)
            _publish(world, draft, final)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return final


def files_below(folder: Path) -> dict[str, Path]:
    """Name -> file of every file of a world, but for those that say what is there."""
    files: dict[str, Path] = {}
    for parent, _, names in os.walk(folder):
        inside = Path(parent)
        below = inside.relative_to(folder).as_posix()
        files.update({name if below == "." else f"{below}/{name}": inside / name for name in names})
    return {name: path for name, path in files.items() if name not in (MARKER, FILES)}


def list_files(folder: Path) -> None:
    """Write the list of a world that was just built."""
    files = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files_below(folder).items()}
    (folder / FILES).write_text(json.dumps({"files": files}, indent=0) + "\n", encoding="utf-8")


def _publish(world: World, draft: Path, final: Path) -> None:
    """Move a finished build into place, unless another process has done so meanwhile."""
    while True:
        try:
            draft.rename(final)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if world.is_built(final):
            return
        # A damaged folder is moved away whole, never emptied in place. Two processes that repair at the same
        # moment may move each other's good folder; the next turn puts an equal one there.
        spoilt = draft.with_name(draft.name + "-spoilt")
        with suppress(FileNotFoundError):
            final.rename(spoilt)
        shutil.rmtree(spoilt, ignore_errors=True)


def worlds_folder() -> Path:
    """Where the worlds of this version lie, one folder each."""
    return cache_folder() / f"mini-v{WORLD_VERSION}"


def cache_folder() -> Path:
    if chosen := os.environ.get("VLBENCH_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vlbench"
