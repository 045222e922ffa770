"""Writing a world: files go to disk, and what they say goes into one digest.

Pixels are hashed before they are compressed, because encoders differ in the last bit between versions of libjpeg.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from .render import UInt8Array

WORLD_VERSION = 1
PROGRESS_STEP = 100  # images between two reports

Progress = Callable[[int, int], None]  # (images done, images in all)


class Writer:
    """Writes files under a root and hashes what they say, in the order written."""

    def __init__(self, root: Path, images: int, progress: Progress | None = None) -> None:
        self.root = root
        self._hash = hashlib.sha256()
        self._done, self._total, self._progress = 0, images, progress

    def image(self, path: str, pixels: UInt8Array) -> None:
        """A picture: PNG if its name says so, else JPEG."""
        self._save(path, pixels)
        self.drawn()

    def drawn(self) -> None:
        """A picture more is there. `image` says so itself; who writes pictures into a text calls it for each."""
        self._done += 1
        if self._progress and (self._done % PROGRESS_STEP == 0 or self._done == self._total):
            self._progress(self._done, self._total)

    def mask(self, path: str, labels: UInt8Array) -> None:
        """A map of labels (H, W) that goes with a picture, as a PNG of 8 bits."""
        self._save(path, labels)

    def text(self, path: str, text: str) -> None:
        self._hash.update(path.encode() + b"\n" + text.encode())
        (self.root / path).write_bytes(text.encode())

    def folder(self, path: str) -> None:
        (self.root / path).mkdir(parents=True, exist_ok=True)

    def digest(self) -> str:
        return self._hash.hexdigest()

    def _save(self, path: str, pixels: UInt8Array) -> None:
        self._hash.update(path.encode() + b"\n" + pixels.tobytes())
        image = Image.fromarray(pixels)
        if path.endswith(".png"):
            image.save(self.root / path, format="PNG", compress_level=1)  # the noise of the ground does not shrink
        else:
            image.save(self.root / path, format="JPEG", quality=95, subsampling="4:4:4")
