"""How much faster models are that lost half of their prunable weights, beside how many MACs they lost: run it, it
asserts nothing.

    OMP_NUM_THREADS=2 python -m tests.benchmarks.cut [--models deit-small,blip-caption] [--batch 16] [--pairs 5]

Random weights; inference, dense and cut in turn, in pairs. even: half of every site. search: widths as one ranking
over all sites leaves them, uneven and odd; and the same rounded to multiples of 8. MACs are counted of the very batch
that is timed. Below a saturating batch the work that cutting does not reach (norms, softmax, the residual stream,
calls) is a larger part.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from tests.benchmarks.common import loaded
from tests.benchmarks.search import build
from vlbench.compression.cut import cut
from vlbench.cost.counts import flop_counter
from vlbench.cost.sample import stated, train
from vlbench.machine.memory import keep_heap
from vlbench.model import Model
from vlbench.pruning.allocation import unified

SPREAD = 0.3  # of the sites' mean importance, in units of that of the units of one site
WAYS: dict[str, tuple[float, int]] = {"even": (0.0, 1), "search": (SPREAD, 1), "search, multiple_of=8": (SPREAD, 8)}


def halved(model: Model, spread: float, multiple_of: int) -> None:
    """Remove half of the prunable entries: by one ranking of random scores, which differ between sites by `spread`."""
    structure, rng = model.structure(), torch.Generator().manual_seed(0)
    importance = {}
    for site in structure.sites:
        within = torch.linspace(0, 1, site.units)  # in every site the same
        importance[site.name] = within + spread * float(torch.randn((), generator=rng))
    cost = {s.name: float(s.entries_per_unit) for s in structure.sites}
    cut(model.net, structure, unified(importance, cost, 0.5, multiple_of))


def work(model: Model, capability: str, batch: Any) -> Callable[[], Any]:
    """A forward pass of the stated sample, without gradients."""

    model.net.eval()

    def forward() -> None:
        with torch.inference_mode():
            train(model, capability, batch)

    return forward


def macs(run: Callable[[], Any]) -> int:
    with flop_counter() as counter:
        run()
    return int(counter.get_total_flops()) // 2


def ratio(dense: Callable[[], Any], other: Callable[[], Any], pairs: int) -> tuple[float, float]:
    """Median of dense / other over pairs of runs: of the wall clock, and of the CPU's."""
    found = []
    for number in range(pairs + 1):
        seconds = []
        for run in (dense, other) if number % 2 else (other, dense):
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
        first, second = seconds if number % 2 else seconds[::-1]
        found.append((first[0] / second[0], first[1] / second[1]))
    return tuple(statistics.median(one) for one in zip(*found[1:], strict=True))  # type: ignore[return-value]


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--models", default="deit-small,blip-caption")
    words.add_argument("--batch", type=int, default=16, help="that saturates")
    words.add_argument("--image", type=int, default=224, help="of BLIP")
    words.add_argument("--pairs", type=int, default=5)
    given = words.parse_args()
    keep_heap()  # as a run does
    print(f"{loaded()}; target: speed-up / MACs >= 0.95 at batch {given.batch}")
    print("model        cut                    batch   MACs ratio   speed-up (CPU)   of MACs (CPU)")
    for name in given.models.split(","):
        dense, capability, _ = build(name, given.image, 1)
        for way, (spread, multiple_of) in WAYS.items():
            other = build(name, given.image, 1)[0]
            halved(other, spread, multiple_of)
            for size in (1, given.batch):
                batch = stated(capability).make(dense, size, True)
                runs = work(dense, capability, batch), work(other, capability, batch)
                saved = macs(runs[0]) / macs(runs[1])
                wall, cpu = ratio(*runs, given.pairs * (2 if size == 1 else 1))
                told = f"{wall:9.2f} ({cpu:.2f}) {wall / saved:11.2f} ({cpu / saved:.2f})"
                print(f"{name:12} {way:22} {size:5} {saved:12.2f} {told}", flush=True)


if __name__ == "__main__":
    main()
