"""Several workers on one cell against one of them: DeiT-small is evaluated, trained and calibrated.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 -m tests.benchmarks.parallel [IMAGES]

Printed are ratios, leader alone / all together, of times that alternate in one run: 2.0 is the most that two workers on
two idle cores (or GPUs) can reach. The others wait without computing while the leader works alone. Starting the workers
is not in it (some seconds, most of them for importing torch).
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from copy import copy, deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.common import Bench, loaded
from tests.benchmarks.evaluation import Slice, imagenet
from tests.calibration.pruned import calibrate
from vlbench.evaluation.loop import Evaluator
from vlbench.evaluation.predictions import Predictions
from vlbench.images.pipeline import ImageStore
from vlbench.machine.workers import ALONE, World, leave, world
from vlbench.training.batches import Batches, collate
from vlbench.training.loop import Loop, Schedule

REPEATS = 3
BATCH = 8


def evaluated(bench: Bench, work: Slice, workers: World, shared: Path) -> None:
    """Decoding, the model, and the files that the workers merge."""
    model, file = bench.model(work.cards), shared / f"evaluated{workers.size}" / "predictions.jsonl"
    store = ImageStore(model.card.image, keep_bytes=0)
    loop = Evaluator(model, work.task, store, settings=work.settings, batch_size=BATCH)
    loop.run(work.samples, Predictions(file, workers))
    workers.barrier("bench")
    if workers.leads:
        file.unlink()


def trained(bench: Bench, work: Slice, workers: World) -> None:
    """Two steps: forward, backward, the sum of 22 million gradients, AdamW."""
    model = copy(bench.model(work.cards))
    model.net = deepcopy(model.net)  # every training begins with the same weights
    stream = Batches(work.samples, ImageStore(model.card.image), size=len(work.samples) // 2, seed=0)
    Loop(model.net, model.classify_loss, stream, Schedule(steps=2, lr=1e-5), seed=0, world=workers).run()


def calibrated(bench: Bench, work: Slice, workers: World) -> None:
    """Statistics of all blocks' inputs, which the workers sum block by block; nothing is pruned."""
    model = bench.model(work.cards)
    store = ImageStore(model.card.image)
    own = work.samples[workers.rank :: workers.size]
    runs = [partial(model.classify_loss, collate([sample], store, bench.device)) for sample in own]
    model.net.eval()
    calibrate(model.net, model.structure(), runs, lambda *_: None, world=workers)


def ratio(work: Callable[[World], Any], workers: World) -> float:
    """Median of leader alone / all together."""
    found = []
    for _ in range(REPEATS):
        took = []
        for who in (ALONE, workers):
            workers.barrier("bench")
            start = time.perf_counter()
            if who is workers or workers.leads:
                work(who)
            workers.barrier("bench")
            took.append(time.perf_counter() - start)
        found.append(took[0] / took[1])
    return statistics.median(found)


def main() -> None:
    workers = world()
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 32
    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory(prefix="vlbench-bench-") as own:
        bench, shared = Bench(torch.device("cuda" if on_gpu else "cpu"), Path(own)), Path(workers.share("folder", own))
        work = imagenet(bench, count)  # the same pictures in every worker
        if workers.leads:
            print(f"{workers.size} workers, {count} images, {loaded()}, {os.uname().machine}", flush=True)
        kinds = {"evaluated": partial(evaluated, shared=shared), "trained": trained, "calibrated": calibrated}
        for name, what in kinds.items():
            found = ratio(partial(what, bench, work), workers)
            if workers.leads:
                print(f"{name:12}{found:6.2f}", flush=True)
        workers.barrier("bench")
    leave()


if __name__ == "__main__":
    main()
