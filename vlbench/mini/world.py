"""The mini world on disk, in the official layouts of the data sets, so that the real readers read it.

A world is built once into the user's cache. Its digest covers the rendered pixels and every text file, and is pinned
here: a generator cannot change unless WORLD_VERSION and DIGESTS change with it.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from ..errors import RunFailed
from .worlds import ade20k, gqa, imagenet, karpathy, nlvr2, nocaps, okvqa, vqav2
from .writer import WORLD_VERSION, Progress, Writer

DIGESTS = {
    "vqav2": "d2d05a79f0721d8d2e325f537a23fee754db4f2e29f0012a1a4bc9ecb1717c64",
    "imagenet": "f9e82cc581b4ff503508b0d5b7732923b1429fc9600c3ff36f47e2628408389b",
    "coco": "726c20e22287dfe623a2629af6d89de14cdaac99260f7a951e8a5f002cfcc439",
    "flickr30k": "00a461ebd5067e28f1af2bc8ab27d4feb2d4231c6d6c91ff99177ed4ba0dfbd5",
    "nlvr2": "e9b788bf4b3ca7ac6113e696c063f59fb25211fee812d07d59b52ac12230650f",
    "ade20k": "40bd64b4307361b83fa947aa9c40d00c218a339404167fbba310b8d97ba90444",
    "gqa": "d81b0f8d9b45d2f3a8ad0916f1aa19650da679bb08be36be220ffc780d08a891",
    "okvqa": "b9f90b9472e36fd79c9ab255a1e2668cc7a265ad825c4d3b63205ac12d37db17",
    "nocaps": "1c762fb5b5ede6cec22154e7bdddec879de6e6c8b52d38089a6cee86bca59b9f",
}
WORLDS = {  # of each task
    "vqav2": "vqav2",
    "imagenet": "imagenet",
    "coco_caption": "coco",
    "coco_retrieval": "coco",
    "flickr30k_retrieval": "flickr30k",
    "nlvr2": "nlvr2",
    "ade20k": "ade20k",
    "gqa": "gqa",
    "okvqa": "okvqa",
    "nocaps": "nocaps",
}
MARKER = "COMPLETE"


def mini_root(name: str, progress: Progress | None = None) -> Path:
    """The folder of a task's mini world (or of the world of that name), built on first use."""
    world = WORLDS.get(name, name)
    final = cache_folder() / f"mini-v{WORLD_VERSION}" / world
    if not _is_complete(world, final):
        final.parent.mkdir(parents=True, exist_ok=True)
        # A sibling, so that the rename stays within one file system and is atomic.
        draft = final.with_name(f".{world}-{uuid.uuid4().hex}")
        try:
            BUILDERS[world](draft, progress)
            _publish(world, draft, final)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return final


def world_digest(name: str) -> str:
    """The pinned SHA-256 of a task's mini world: it enters the identity of every cell that reads it."""
    return DIGESTS[WORLDS.get(name, name)]


def build(
    world: str, images: int, write: Callable[[Writer], None], root: Path, progress: Progress | None = None
) -> None:
    """Write a world under `root`, and seal it if it came out as pinned."""
    writer = Writer(root, images, progress)
    write(writer)
    if writer.digest() != DIGESTS[world]:
        raise RunFailed(
            f"The mini data set {world!r} came out with digest {writer.digest()}, expected {DIGESTS[world]} "
            f"(world version {WORLD_VERSION}). If its generator was changed on purpose, raise WORLD_VERSION "
            "and pin the new digest."
        )
    (root / MARKER).write_text(DIGESTS[world] + "\n", encoding="ascii")


BUILDERS: dict[str, Callable[[Path, Progress | None], None]] = {
    "vqav2": partial(build, "vqav2", vqav2.IMAGES, vqav2.write),
    "imagenet": partial(build, "imagenet", imagenet.IMAGES, imagenet.write),
    "coco": partial(build, "coco", karpathy.COCO_IMAGES, karpathy.write_coco),
    "flickr30k": partial(build, "flickr30k", karpathy.FLICKR30K_IMAGES, karpathy.write_flickr30k),
    "nlvr2": partial(build, "nlvr2", nlvr2.IMAGES, nlvr2.write),
    "ade20k": partial(build, "ade20k", ade20k.IMAGES, ade20k.write),
    "gqa": partial(build, "gqa", gqa.IMAGES, gqa.write),
    "okvqa": partial(build, "okvqa", okvqa.IMAGES, okvqa.write),
    "nocaps": partial(build, "nocaps", nocaps.IMAGES, nocaps.write),
}


def _is_complete(name: str, folder: Path) -> bool:
    try:
        return (folder / MARKER).read_bytes().strip() == DIGESTS[name].encode()
    except OSError:
        return False


def _publish(name: str, draft: Path, final: Path) -> None:
    """Move a finished build into place, unless another process has done so meanwhile."""
    while True:
        try:
            draft.rename(final)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if _is_complete(name, final):
            return
        # A damaged folder is moved away whole, never emptied in place. Two processes that repair at the same
        # moment may move each other's good folder; the next turn puts an equal one there.
        spoilt = draft.with_name(draft.name + "-spoilt")
        with suppress(FileNotFoundError):
            final.rename(spoilt)
        shutil.rmtree(spoilt, ignore_errors=True)


def cache_folder() -> Path:
    if chosen := os.environ.get("VLBENCH_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vlbench"
