"""A row that says `trained: no` is of a model with the original's weights, but for what was cut, masked or declared.

A method that trains goes by `job.train`, which counts steps and samples and says so in the record. One that descends a
gradient by hand would stand among the untrained ones: what it moved is found here, weight by weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy, deepcopy

import torch
from torch import Tensor, nn

from ..compression.state import Compression
from ..errors import RunFailed
from ..machine.memory import LARGE, FilePages
from ..model import Model

PART = 1 << 24  # entries of a weight at once


class Witness:
    """The weights before a link, and what had been done to the model by then. again: opens that model once more, on the
    host and in the same precision."""

    def __init__(self, model: Model, state: Compression, again: Callable[[], Model]) -> None:
        self.model, self.cuts, self.again = model, len(state.cuts), again
        size = sum(p.numel() * p.element_size() for p in model.net.parameters())
        self.net = _copied(model.net) if size <= LARGE else None  # a copy is quicker

    def refuse_moved(self, model: Model, state: Compression, link: str) -> None:
        """Raise RunFailed, naming the link and a tensor, where weights differ that are neither cut, masked nor
        declared, and nothing says that the model was trained."""
        if state.trained:
            return
        before = copy(self.model)
        before.net = self.net or self.again().net
        for made in state.cuts[self.cuts :]:
            made.repeat(before.net, before.structure())
        moved = list(_moved(before.net, model.net, state))
        if moved:
            name, count = moved[0]
            raise RunFailed(
                f"{link} moved weights and says nothing of it ({count} of {name}"
                f"{f', and {len(moved) - 1} tensors more' if len(moved) > 1 else ''}), so that the row would say that "
                "nothing was trained: train by job.train(), or declare what a formula changes with "
                "job.changes.update()."
            )


def _copied(net: nn.Module) -> nn.Module:
    """The network once more, on the host."""
    devices = {p.device for p in net.parameters()}
    if len(devices) == 1 and devices != {torch.device("cpu")}:  # never twice on the device
        (device,) = devices
        twin = deepcopy(net.to("cpu"))
        net.to(device)
        return twin
    return deepcopy(net).to("cpu")


def _moved(before: nn.Module, after: nn.Module, state: Compression) -> Iterator[tuple[str, int]]:
    """Tensors with weights that stand elsewhere, and how many. `before` is of no use afterwards."""
    old, pages = dict(before.named_parameters()), FilePages()
    for name, parameter in after.named_parameters():
        if name not in old or name in state.updated:  # given biases and adapters are declared by what gives them
            continue
        now, then = parameter.detach().cpu(), old[name].detach()
        if count := _differing(now, then.to(now.dtype), state.masks.get(name), pages):
            yield name, count


def _differing(now: Tensor, then: Tensor, mask: Tensor | None, pages: FilePages) -> int:
    """Entries that a mask keeps, or that have none, and that are other numbers than before. Looked at in parts: an
    embedding is a seventh of a small language model."""
    if now.shape != then.shape:
        return now.numel()
    kept = [None] * (now.numel() // PART + 1) if mask is None else mask.flatten().split(PART)
    count = 0
    for new, old, keep in zip(now.flatten().split(PART), then.flatten().split(PART), kept, strict=False):
        if not torch.equal(new, old):
            differing = new != old
            count += int((differing if keep is None else differing & keep).count_nonzero())
        pages.give_back(old)
    return count
