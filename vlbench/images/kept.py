"""Decoded photos on disk, at the size that a model takes: cells of a sweep but the first read and decode nothing.

A file an image, in a folder a preprocessing: <cache>/pixels/<preprocessing>/<two digits>/<digest of the image's file>.
What is kept is uint8 before normalisation, and so the very bytes that decoding gives. The image's file is read and
hashed each time: a photo that was replaced is another photo. Files are written under another name and renamed, mapped
into memory when they are read (processes share the pages), and hold a checksum: a damaged one is decoded anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import mmap
import os
import platform
import shutil
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..disk.storage import digest
from ..errors import UserError
from ..mini.world import cache_folder
from .spec import ImageSpec

VARIABLE = "VLBENCH_PIXELS_GB"  # disk that decoded photos may take; 0: none are kept
DEFAULT_GB = 10.0
SMALLEST = 64 << 10  # bytes of an image below which decoding it costs about what a file of its own does
UNUSED = 7 * 24 * 3600.0  # seconds after which a preprocessing that nothing was added to makes room for another
UNFINISHED = ".tmp"  # how the name of a file ends that is being written, by whoever holds the lock
HEAD = struct.Struct("<4sIII")  # MARK, height and width of the image's file, checksum of all but that
MARK = b"VLP1"
Found = tuple[Tensor, tuple[int, int]]


class KeptPixels:
    """Images of one preprocessing that are kept on disk, as far as all of them fit into `budget` bytes.

    First come, first kept: a split that is longer than the room would push every image out just before its turn. What
    cannot be written is decoded each time. It changes no number, and so is no option of a cell."""

    def __init__(self, root: Path, spec: ImageSpec, budget: float) -> None:
        self.root, self.spec, self.budget = root, spec, budget
        self.folder = root / _preprocessing(spec)
        self._full = False
        self._begun = threading.Lock()
        self._opened = False

    @classmethod
    def here(cls, spec: ImageSpec) -> KeptPixels | None:
        """In the user's cache. None where nothing is to be kept: images of the model's own making (resize="views"),
        images of all shapes ("keep"), small ones. Raises UserError for a budget that is no number."""
        budget = budget_bytes()
        if not budget or spec.resize in ("views", "keep") or 3 * spec.size**2 < SMALLEST:
            return None
        return cls(cache_folder() / "pixels", spec, budget)

    def read(self, key: str) -> Found | None:
        """(3, size, size) uint8 and the (height, width) of the image's file; None where it is not kept whole."""
        size = self.spec.size
        try:
            with self._path(key).open("rb", buffering=0) as stream:
                mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)  # nobody writes to the file through it
        except (OSError, ValueError):
            return None
        if len(mapped) == HEAD.size + 3 * size**2:
            mark, height, width, check = HEAD.unpack_from(mapped)
            pixels = np.frombuffer(mapped, np.uint8, offset=HEAD.size)
            if mark == MARK and check == _checksum(key, height, width, pixels):
                return torch.from_numpy(pixels).view(3, size, size), (height, width)
        return None

    def write(self, key: str, pixels: Tensor, shape: tuple[int, int]) -> None:
        """Keep an image, or not: a full disk or a folder that cannot be written ends the keeping and nothing else."""
        if self._full or tuple(pixels.shape) != (3, self.spec.size, self.spec.size):
            return
        path = self._path(key)
        content = pixels.contiguous().numpy()
        head = HEAD.pack(MARK, *shape, _checksum(key, *shape, content))
        try:
            self._open()
            with _counted(self.root) as count:
                if not path.exists():
                    self._full = not self._fits(count, HEAD.size + content.nbytes)
                if self._full:
                    return
                path.parent.mkdir(exist_ok=True)
                temporary = path.with_name(f"{path.name}{UNFINISHED}")
                with temporary.open("wb", buffering=0) as stream:
                    stream.write(head)
                    stream.write(content.data.cast("B"))
                temporary.replace(path)
        except OSError:
            self._full = True

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def _open(self) -> None:
        """Once a process that adds an image: make the folder, and date it."""
        with self._begun:
            if not self._opened:
                self.folder.mkdir(parents=True, exist_ok=True)
                os.utime(self.folder)
                self._opened = True

    def _fits(self, count: _Count, size: int) -> bool:
        """Count `size` more bytes among all that processes keep here; False where they do not fit. The first time they
        do not, what nobody used for long is removed, and what is there is counted again: a killed run counts bytes
        that it never wrote."""
        used = count.used
        if used is None or used + size > self.budget:
            _remove_unused(self.root, self.folder)
            used = _bytes_in(self.root)
        fits = used + size <= self.budget
        count.used = used + size if fits else used
        return fits


def budget_bytes() -> float:
    """What VLBENCH_PIXELS_GB says, in bytes. Raises UserError where that is no number of gigabytes."""
    asked = os.environ.get(VARIABLE) or str(DEFAULT_GB)
    try:
        gigabytes = float(asked)
    except ValueError:
        gigabytes = math.nan
    if not 0 <= gigabytes < math.inf:
        raise UserError(
            f"{VARIABLE} is {asked!r}: write gigabytes of disk for decoded photos, as in 20, or 0 for none."
        )
    return gigabytes * 2**30


def content_key(content: bytes) -> str:
    """By which an image is known: sha256 of its file."""
    return hashlib.sha256(content).hexdigest()


def _preprocessing(spec: ImageSpec) -> str:
    """Of all that the pixels depend on: the words, the code that decodes and resizes, the libraries, the processor
    (whose kernels of resizing round differently). Normalisation comes later; but "pad" fills with the mean colour."""
    words = {name: value for name, value in asdict(spec).items() if name not in ("std", "stride")}
    if spec.resize != "pad":
        del words["mean"]
    code = hashlib.sha256(Path(__file__).with_name("pipeline.py").read_bytes()).hexdigest()
    libraries = {name: version(name) for name in ("pillow", "torch", "torchvision")}
    processor = [platform.machine(), torch.backends.cpu.get_cpu_capability()]
    return digest({"words": words, "code": code, "libraries": libraries, "processor": processor})[:16]


def _checksum(key: str, height: int, width: int, pixels: npt.NDArray[np.uint8]) -> int:
    """Of the pixels and of what they are said to be: a file under another's name is noticed, too."""
    return zlib.crc32(pixels.data, zlib.crc32(f"{key} {height} {width}".encode()))


class _Count:
    """Bytes that are kept, in a file: None where nobody has counted them."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    @property
    def used(self) -> int | None:
        text = os.pread(self.handle, 32, 0)
        return int(text) if text.strip().isdigit() else None

    @used.setter
    def used(self, value: int) -> None:
        os.pwrite(self.handle, f"{value:<20d}".encode(), 0)


@contextmanager
def _counted(root: Path) -> Iterator[_Count]:
    """The count, while no other thread or process writes anything here: a file takes a tenth of what decoding does."""
    handle = os.open(root / "bytes", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: the count may then be off by some images
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield _Count(handle)
    finally:
        os.close(handle)


def _remove_unused(root: Path, mine: Path) -> None:
    for folder in root.iterdir():
        if folder.is_dir() and folder != mine and time.time() - folder.stat().st_mtime > UNUSED:
            shutil.rmtree(folder, ignore_errors=True)


def _bytes_in(root: Path) -> int:
    """Bytes of all whole files; those that a killed run left unfinished are removed."""
    used = 0
    for file in root.glob("*/*/*"):
        if file.suffix == UNFINISHED:
            file.unlink()
        else:
            used += file.stat().st_size
    return used
