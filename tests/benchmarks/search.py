"""What a step of UPop's search costs beside a plain training step: run it, it asserts nothing.

    OMP_NUM_THREADS=2 python -m tests.benchmarks.search [--model blip-caption] [--batch 4] [--image 224] [--pairs 5]

A model of real size with random weights, forward, backward and AdamW, in pairs of one plain and one search step. The
update of the gates is measured by itself, and its share at the published interval is added. Images are smaller than the
card's, so that a CPU can do it: fewer activations beside the same weights, which makes gates look dearer than they are.
Activations are the bytes that autograd keeps for the backward pass, each storage once, parameters left out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tests.benchmarks.common import loaded
from vlbench.capability import Batch
from vlbench.compression.gates import Gates
from vlbench.cost.architecture import assets
from vlbench.cost.sample import stated
from vlbench.machine.memory import keep_heap
from vlbench.methods.upop import Search, UPopOptions  # noqa: TID251 - a benchmark of this very file
from vlbench.model import Model
from vlbench.plugins.table import table

Times = tuple[float, float]  # seconds: of the wall clock, and of this process on all cores
INTERVALS = {"blip-caption": 100, "blip-vqa": 1000, "blip-nlvr": 50, "deit-small": 500}  # published, steps


def build(name: str, image: int, batch: int) -> tuple[Model, str, Batch]:
    """The card's architecture for smaller images, its capability, and the sample that costs are stated for."""
    family = table("models").get(name).load()
    card = next(c for c in family.cards if c.name == name)
    if image and name.startswith("blip"):
        card = replace(card, image=replace(card.image, size=image))
    torch.manual_seed(0)
    with assets(card) as folder:
        model: Model = family.build(card, family.architecture(card), folder)
    return model, card.capabilities[0], stated(card.capabilities[0]).make(model, batch, True)


class Steps:
    """Plain and search steps of one network, with one optimiser."""

    def __init__(self, model: Model, loss: Callable[[], Tensor], steps: int, interval: int) -> None:
        self.net, self.loss = model.net.train(), loss
        self.optimiser = torch.optim.AdamW(model.net.parameters(), lr=1e-5, weight_decay=0.05)
        structure = model.structure()
        self.gates = Gates(model.net, structure)
        self.gated = {m: m.forward for m in model.net.modules() if "forward" in vars(m)}
        cost = {s.name: float(s.entries_per_unit) for s in structure.sites}
        options = UPopOptions(sparsity=0.5, steps=steps, interval=interval)
        self.search = Search(self.gates, structure, options, cost)

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Inside, the gates are off."""
        for module in self.gated:
            del module.forward
        yield
        for module, forward in self.gated.items():
            module.forward = forward  # type: ignore[method-assign]

    def step(self, *, gates: bool) -> None:
        """One training step."""
        self.loss().backward()
        if gates:
            self.search.after_backward(1)  # and after_step does nothing between two updates
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def update(self) -> None:
        self.search.after_step(self.search.options.interval)


def clocked(work: Callable[[], None]) -> Times:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def kept_bytes(net: nn.Module, loss: Callable[[], Tensor]) -> int:
    """What the forward pass leaves for the backward pass."""
    own = {p.untyped_storage().data_ptr() for p in [*net.parameters(), *net.buffers()]}
    found: dict[int, int] = {}
    alive: list[Any] = []  # or a storage is given out twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss()
    return sum(found.values())


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--model", default="blip-caption", choices=list(INTERVALS))
    words.add_argument("--batch", type=int, default=4)
    words.add_argument("--image", type=int, default=224)
    words.add_argument("--pairs", type=int, default=5)
    given = words.parse_args()
    keep_heap()  # as a run does
    model, capability, batch = build(given.model, given.image, given.batch)
    interval = INTERVALS[given.model]
    loss = getattr(model, f"{capability}_loss")
    steps = Steps(model, lambda: loss(batch), 10 * interval, interval)
    size = sum(p.numel() for p in model.net.parameters()) / 1e6
    print(f"{given.model}, {size:.0f}M parameters, images {tuple(batch.images.shape)}; {loaded()}")

    search_bytes = kept_bytes(model.net, steps.loss)
    with steps.plain():
        plain_bytes = kept_bytes(model.net, steps.loss)
        steps.step(gates=False)  # makes the optimiser's moments; not counted
    plain, search = [], []
    for _ in range(given.pairs):
        with steps.plain():
            plain.append(clocked(lambda: steps.step(gates=False)))
        search.append(clocked(lambda: steps.step(gates=True)))
    updates = [clocked(steps.update) for _ in range(3)]
    print("                             plain    search     ratio   target")
    for row, name in enumerate(("step, s of the wall", "step, s of the CPU")):
        update = statistics.median(one[row] for one in updates) / interval
        pairs = [(p[row], s[row] + update) for p, s in zip(plain, search, strict=True)]
        before, after = (statistics.median(one) for one in zip(*pairs, strict=True))
        print(f"{name:24} {before:9.3f} {after:9.3f} {statistics.median(s / p for p, s in pairs):9.3f}  <= 1.05")
    print(f"activations, MB          {plain_bytes / 1e6:9.1f} {search_bytes / 1e6:9.1f} "
          f"{search_bytes / plain_bytes:9.3f}  <= 1.06")  # fmt: skip
    print(f"an update of the gates, every {interval} steps: {updates[0][0]:.3f} s, its share is in the lines above")


if __name__ == "__main__":
    main()
