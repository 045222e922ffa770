"""Seconds and memory of the metrics that could be slow, at full size on one core: run it, it asserts nothing.

    OMP_NUM_THREADS=1 python tests/benchmarks/metrics.py

Bounds meant: mIoU of ADE20K's 2,000 validation images in 30 s, COCO's 5,000 x 25,000 ranks in 10 s and 2 GB.
"""

from __future__ import annotations

import importlib
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vlbench.evaluation.ranks import ranks
from vlbench.images.maps import LabelMap, pack_map
from vlbench.records.statistics import bootstrap
from vlbench.task import Sample

IMAGES, SHAPE, CLASSES, DISTINCT = 2000, (512, 683), 150, 20
GALLERY = (5000, 25_000)


def patches(draws: np.random.Generator) -> np.ndarray:
    """A class map of some 25 regions with rough borders: 10 to 20 KB as a PNG, like a real one."""
    coarse = draws.integers(0, CLASSES, size=(5, 5)).astype(np.uint8)
    rows, columns = np.indices(SHAPE)
    rough = draws.normal(0, 2, size=(2, *SHAPE)).cumsum(axis=2) / 8
    at = [np.clip((i + r) * 5 // n, 0, 4).astype(int) for i, r, n in zip((rows, columns), rough, SHAPE, strict=True)]
    found: np.ndarray = coarse[at[0], at[1]]
    return found


def told(what: str, start: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{what}: {time.perf_counter() - start:.1f} s (peak memory of the process so far {peak:.2f} GB)", flush=True)


def segmentation(folder: Path) -> None:
    module = importlib.import_module("vlbench.tasks.ade20k")
    task, draws = module.ADE20K(folder, module.ADE20KOptions()), np.random.default_rng(0)
    samples, said = [], []
    for n in range(DISTINCT):
        label = patches(draws)
        path = folder / f"{n}.png"
        Image.fromarray(label + np.uint8(1)).save(path)
        samples.append(Sample(str(n), (folder / f"{n}.jpg",), target=LabelMap(path, zero_ignored=True)))
        said.append({"map": pack_map(np.where(draws.random(SHAPE) < 0.001, 3, label).astype(np.uint8))})
    print(f"a packed prediction has {len(said[0]['map']) / 1e3:.0f} kB, a label map {path.stat().st_size / 1e3:.0f} kB")
    many = IMAGES // DISTINCT
    start = time.perf_counter()
    scores = task.scores(samples * many, said * many)
    told(f"scores of {IMAGES} maps of {SHAPE} with {CLASSES} classes", start)
    start = time.perf_counter()
    task.aggregate(samples * many, scores)
    told("their aggregate", start)
    start = time.perf_counter()
    bootstrap(scores, None, [""] * IMAGES, task.corpus_metric)
    told("bootstrap of mIoU, 10,000 draws", start)


def retrieval() -> None:
    scores = torch.rand(GALLERY, generator=torch.Generator().manual_seed(0)).numpy()
    owner = np.repeat(np.arange(GALLERY[0]), GALLERY[1] // GALLERY[0])
    start = time.perf_counter()
    ranks(scores, scores, owner)
    told(f"ranks of {GALLERY} scores", start)
    turned = np.asfortranarray(scores)
    start = time.perf_counter()
    ranks(scores, turned, owner)
    told("the same, with another matrix for text to image that lies transposed", start)


if __name__ == "__main__":
    torch.set_num_threads(1)
    retrieval()
    with tempfile.TemporaryDirectory() as place:
        segmentation(Path(place))
