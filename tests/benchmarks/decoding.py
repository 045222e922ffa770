"""Photos a second on one core, decoded by several libraries, prepared for a model, and read from kept pixels.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.decoding [FOLDER] [--photos 126] [--size 224,384] [--rounds 3]

Real photographs (../shared/data, or any folder of JPEGs). Of libraries that are not installed it says so. "off" is the
largest difference from Pillow's pixels in grey levels, over all photos. It asserts nothing.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.beside import SHARED, WANTING
from vlbench.images.kept import KeptPixels
from vlbench.images.pipeline import ImageStore, decode
from vlbench.images.spec import ImageSpec

PHOTOS = SHARED / "data" / "imagenet_calib" / "images"
Decoder = Callable[[Path], Any]  # -> (H, W, 3) uint8


def pillow(path: Path) -> Any:
    return decode(path).permute(1, 2, 0).numpy()


def torchvision() -> Decoder:
    io = importlib.import_module("torchvision.io")
    return lambda path: io.decode_jpeg(io.read_file(str(path)), mode=io.ImageReadMode.RGB).permute(1, 2, 0).numpy()


def simplejpeg() -> Decoder:
    library = importlib.import_module("simplejpeg")
    return lambda path: library.decode_jpeg(path.read_bytes(), "RGB")


def turbojpeg() -> Decoder:
    library = importlib.import_module("turbojpeg")
    reader = library.TurboJPEG()
    return lambda path: reader.decode(path.read_bytes(), pixel_format=library.TJPF_RGB)


def opencv() -> Decoder:
    cv2 = importlib.import_module("cv2")
    cv2.setNumThreads(1)
    how = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    return lambda path: cv2.cvtColor(cv2.imdecode(np.fromfile(path, np.uint8), how), cv2.COLOR_BGR2RGB)


OTHERS: tuple[Callable[[], Decoder], ...] = (torchvision, simplejpeg, turbojpeg, opencv)


def rate(work: Callable[[], object], count: int, rounds: int) -> float:
    """Photos a second, of the fastest round: others use the machine too."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return count / min(seconds)


def decoders(photos: Sequence[Path], rounds: int) -> None:
    reference = [pillow(path) for path in photos]
    plain = rate(lambda: [pillow(path) for path in photos], len(photos), rounds)
    print(f"{'Pillow':12} {plain:8.0f} photos/s")
    for make in OTHERS:
        try:
            one = make()
        except (ImportError, OSError, RuntimeError) as error:
            print(f"{make.__name__:12} is not here: {str(error).splitlines()[0]}")
            continue
        off = max(int(np.abs(one(p).astype(int) - r).max()) for p, r in zip(photos, reference, strict=True))
        found = rate(lambda one=one: [one(path) for path in photos], len(photos), rounds)  # type: ignore[misc]
        print(f"{make.__name__:12} {found:8.0f} photos/s, {found / plain:.2f} x Pillow, off by {off}")


def reading(photos: Sequence[Path], size: int, rounds: int) -> None:
    """The store with one thread, that keeps nothing in memory."""
    spec = ImageSpec(size)
    with tempfile.TemporaryDirectory() as folder:
        kept = ImageStore(spec, workers=1, keep_bytes=0, kept=KeptPixels(Path(folder), spec, 1e12))
        plain = ImageStore(spec, workers=1, keep_bytes=0)
        wanted = plain.load(photos)
        start = time.perf_counter()
        kept.load(photos)
        first = len(photos) / (time.perf_counter() - start)
        same = all(map(torch.equal, kept.load(photos), wanted))
        decoded = rate(lambda: plain.load(photos), len(photos), rounds)
        read = rate(lambda: kept.load(photos), len(photos), rounds)
    print(
        f"at {size}: decoded and resized {decoded:.0f} photos/s, kept besides {first:.0f}, read {read:.0f} "
        f"({read / decoded:.1f} x), {'the same bytes' if same else 'OTHER BYTES'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=PHOTOS)
    parser.add_argument("--photos", type=int, default=126)
    parser.add_argument("--size", default="224,384")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    photos = sorted(p for p in args.folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))[: args.photos]
    if not photos:
        sys.exit(WANTING if args.folder == PHOTOS else f"{args.folder} has no JPEGs")
    torch.set_num_threads(1)
    megapixels = sum(decode(p)[0].numel() for p in photos) / len(photos) / 1e6
    print(f"{len(photos)} photos of {megapixels:.2f} megapixels")
    decoders(photos, args.rounds)
    for size in map(int, args.size.split(",")):
        reading(photos, size, args.rounds)


if __name__ == "__main__":
    main()
