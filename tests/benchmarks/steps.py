"""What a step of searches and of perturbed adapters costs beside a plain one: run it, it asserts nothing.

    OMP_NUM_THREADS=2 python -m tests.benchmarks.steps [--model deit-small] [--batch 8] [--pairs 7] [--of l0,mgpo]

A model of real size with random weights; steps of the training loop, in pairs of one plain and one with the method's
hook, so that what else the machine does falls on both. l0 (heads and neurons), l0_all (blocks and width, too) and
group_lasso train all weights beside a plain training; mgpo and ggpo train adapters beside the same adapters
unperturbed. Targets: l0 1.1, group_lasso 1.05, mgpo 1.1, ggpo 2.1. What group_lasso adds does not grow with the batch.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any, cast

from tests.benchmarks.common import loaded
from tests.benchmarks.search import build
from vlbench.capability import Batch, capability_of
from vlbench.machine.memory import keep_heap
from vlbench.model import Model
from vlbench.nn.precision import plain_float32
from vlbench.pruning.l0_search import Search
from vlbench.restoring.adapters import AdapterOptions, attach_new, placed
from vlbench.training.loop import Hook, Loop, Schedule

STEPS = 1000  # of the schedule, few of which are run


class One:
    """The same batch at every step."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def at(self, step: int) -> Batch:
        return self.batch


def loop_of(model: Model, capability: str, batch: Batch, schedule: Schedule, hooks: list[Hook]) -> Loop:
    def loss(batch: Batch) -> Any:
        return capability_of(capability).loss(model, batch)

    model.net.train()
    return Loop(model.net, loss, cast(Any, One(batch)), schedule, seed=0, hooks=hooks)


def copied(model: Model) -> Model:
    other = cast(Model, object.__new__(type(model)))
    vars(other).update({**vars(model), "net": deepcopy(model.net)})
    return other


def of_l0(units: str) -> Callable[[Model], tuple[Schedule, list[Hook], list[Hook]]]:
    def made(model: Model) -> tuple[Schedule, list[Hook], list[Hook]]:
        l0 = importlib.import_module("vlbench.methods.l0")
        method = l0.L0(l0.L0Options(steps=STEPS, units=units))
        structure = method.units(model.structure())
        sizes, counts = method.sizes(structure), method.counts(structure)
        return method.options, [Search(model.net, structure, method.options, sizes, counts, seed=0)], []

    return made


def of_group_lasso(model: Model) -> tuple[Schedule, list[Hook], list[Hook]]:
    lasso = importlib.import_module("vlbench.methods.group_lasso")
    options = lasso.GroupLassoOptions(steps=STEPS)
    return options, [lasso.Proximal(model.net, model.structure(), options)], []


def of_adapters(kind: str) -> Callable[[Model], tuple[Schedule, list[Hook], list[Hook]]]:
    def made(model: Model) -> tuple[Schedule, list[Hook], list[Hook]]:
        options = AdapterOptions(steps=STEPS, perturb=kind)
        ranks = placed(model, options, {tower.name for tower in model.structure().towers})
        model.net.requires_grad_(False)
        attach_new(model.net, ranks, options, {}, recompute=False)
        return options, options.hooks(model.net), []

    return made


KINDS: dict[str, Callable[[Model], tuple[Schedule, list[Hook], list[Hook]]]] = {
    "l0": of_l0("site"),
    "l0_all": of_l0("site+block+width"),
    "group_lasso": of_group_lasso,
    "mgpo": of_adapters("mgpo"),
    "ggpo": of_adapters("ggpo"),
}


def seconds(loop: Loop, step: int) -> float:
    """Of this process on all cores: a clock on the wall counts what others do, too."""
    start = time.process_time()
    loop._step(step)
    return time.process_time() - start


def measured(kind: str, name: str, image: int, batch: int, pairs: int) -> str:
    model, capability, given = build(name, image, batch)
    plain = copied(model)
    schedule, hooks, none = KINDS[kind](model)
    if kind in ("mgpo", "ggpo"):
        of_adapters(kind)(plain)
    loops = [loop_of(m, capability, given, schedule, h) for m, h in ((plain, none), (model, hooks))]
    ratios, times = [], []
    for step in range(pairs + 2):  # the first two fill caches and the optimiser's moments
        one, other = (seconds(loop, step) for loop in loops)
        if step > 1:
            ratios.append(other / one)
            times.append(one)
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    return f"{kind:12} {statistics.median(ratios):.3f}  ({spread}; plain {statistics.median(times):.2f} s)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit-small")
    parser.add_argument("--image", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--of", default=",".join(KINDS))
    given = parser.parse_args()
    keep_heap()
    plain_float32()
    print(f"{given.model}, batch {given.batch}; {loaded()}")
    for kind in given.of.split(","):
        print(measured(kind, given.model, given.image, given.batch, given.pairs), flush=True)


if __name__ == "__main__":
    main()
