"""A row that says `trained: no` is of a model with the original's weights, but for what was cut, masked or declared.

A method that trains goes by `job.train`, which counts steps and samples and says so in the record. One that descends a
gradient by hand would stand among the untrained ones: what it moved is found here, weight by weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy, deepcopy

import torch
from torch import Tensor, nn

from ..compression.state import Compression
from ..errors import RunFailed
from ..machine.memory import free_memory
from ..model import Model

SHARE = 0.5  # of the host's free memory, which a copy of the weights may take: a larger model is not compared


class Witness:
    """The weights before a link, and what had been done to the model by then."""

    def __init__(self, model: Model, state: Compression) -> None:
        self.model, self.cuts, self.net = model, len(state.cuts), _copied(model.net)

    def refuse_moved(self, model: Model, state: Compression, link: str) -> None:
        """Raise RunFailed, naming the link and a tensor, where weights differ that are neither cut, masked nor
        declared, and nothing says that the model was trained."""
        if self.net is None or state.trained:
            return
        before = copy(self.model)
        before.net = self.net
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


def _copied(net: nn.Module) -> nn.Module | None:
    """The network once more, on the host; None where that would take too much of it."""
    size = sum(p.numel() * p.element_size() for p in net.parameters())
    if size > SHARE * free_memory(torch.device("cpu")):
        return None
    devices = {p.device for p in net.parameters()}
    if len(devices) == 1 and devices != {torch.device("cpu")}:  # never twice on the device
        (device,) = devices
        twin = deepcopy(net.to("cpu"))
        net.to(device)
        return twin
    return deepcopy(net).to("cpu")


def _moved(before: nn.Module, after: nn.Module, state: Compression) -> Iterator[tuple[str, int]]:
    """Tensors with weights that stand elsewhere, and how many."""
    old = dict(before.named_parameters())
    for name, parameter in after.named_parameters():
        if name not in old or name in state.updated:  # given biases and adapters are declared by what gives them
            continue
        now, then = parameter.detach().cpu(), old[name].detach()
        if now.shape != then.shape:
            yield name, now.numel()
            continue
        differing: Tensor = now != then
        if name in state.masks:
            differing &= state.masks[name]
        if count := int(differing.count_nonzero()):
            yield name, count
