"""What a cell takes of a device, before it runs: memory by part and the operations of each stage.

Nothing is computed: the model is built without its weights (architecture.py) and a batch of the capability's stated
sample passes through it, forward and, where a link trains, backward, while the bytes of all tensors alive are counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from ..capability import Batch, capability_of
from ..model import Model
from ..plugins.entry import Entry
from ..training.memory import recomputed
from .architecture import with_blank
from .counts import stated_macs
from .sample import stated, train

PROBED = (2, 4)  # samples of the two batches that tell what one more sample takes
STATES = {"adamw": 2, "sgd": 1}  # of an optimiser, each as large as the parameters


@dataclass(frozen=True)
class Step:
    """Training steps. batch: samples of a part, of which `parts` make a step."""

    steps: int
    batch: int
    parts: int
    optimiser: str
    checkpointing: bool


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak. activations: of all tensors but parameters, gradients and the optimiser's states."""

    weights: int
    activations: int
    gradients: int = 0
    optimiser: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.activations + self.gradients + self.optimiser


class Alive(TorchDispatchMode):
    """Bytes of the tensors that were made inside and are alive, and the most of them at a time; each memory once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(t.untyped_storage()) for t in _tensors((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        for tensor in _tensors(made):
            self._note(tensor.untyped_storage(), before)
        return made

    def _note(self, storage: torch.UntypedStorage, before: set[int]) -> None:
        key = id(storage)
        if key in self._sizes or key in before:  # a view of what was there, or a change in place
            return
        self._sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


def _tensors(tree: Any) -> list[torch.Tensor]:
    tensors: list[torch.Tensor] = []
    tree_map_only(torch.Tensor, tensors.append, tree)
    return tensors


class _Fused(torch.autograd.Function):
    """Attention as fused kernels keep it: queries, keys, values and outputs, and no product of queries and keys."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = v.new_empty((*q.shape[:-1], v.shape[-1]))
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        q, k, v, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


@contextmanager
def fused_attention() -> Iterator[None]:
    """Inside, attention of a model without weights computes nothing and keeps what a fused kernel keeps."""
    plain = F.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        return _Fused.apply(query, key, value)

    F.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


def passing(model: Model, capability: str, samples: int) -> int:
    """Bytes alive at the peak of a forward pass of that many samples, without those of the model and the batch."""
    model.net.eval()
    batch: Batch = stated(capability).make(model, samples, True)
    with torch.no_grad(), Alive() as alive:
        train(model, capability, batch)
    return int(alive.peak)


def training(model: Model, capability: str, samples: int, *, checkpointing: bool = False) -> int:
    """Bytes alive at the peak of a forward and a backward pass of that many samples, without those of the model, the
    batch and the gradients of parameters."""
    model.net.train().requires_grad_(True)
    batch: Batch = stated(capability).make(model, samples, True)
    again = recomputed(model.net, model.structure()) if checkpointing else nullcontext()
    with again, Alive() as alive:
        loss = capability_of(capability).loss(model, batch)
        parameters = [p for p in model.net.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    made = sum(g.untyped_storage().nbytes() for g in gradients if g is not None)
    return max(int(alive.peak) - made, 0)


def extrapolated(peak: Callable[[int], int], samples: int) -> int:
    """The peak of a batch, from those of two small ones: activations grow with the samples."""
    few, more = PROBED
    at_few, at_more = peak(few), peak(more)
    return max(round(at_few + (at_more - at_few) / (more - few) * (samples - few)), 0)


def evaluated(entry: Entry, capability: str, batch: int) -> Memory:
    """A cell's memory while it evaluates. Weights in float32."""

    def work(model: Model) -> Memory:
        with fused_attention():
            return Memory(_bytes(model), extrapolated(lambda n: passing(model, capability, n), batch))

    return with_blank(entry, work)


def trained(entry: Entry, capability: str, step: Step) -> Memory:
    """A cell's memory while it trains all weights in float32, without what a teacher or a momentum model takes."""

    def work(model: Model) -> Memory:
        size = _bytes(model)

        def peak(samples: int) -> int:
            return training(model, capability, samples, checkpointing=step.checkpointing)

        with fused_attention():
            return Memory(size, extrapolated(peak, step.batch), size, STATES[step.optimiser] * size)

    return with_blank(entry, work)


def macs(entry: Entry, capability: str) -> int:
    """Of one stated sample, forward."""
    return with_blank(entry, lambda model: stated_macs(model, capability))


def _bytes(model: Model) -> int:
    return sum(t.numel() * t.element_size() for t in (*model.net.parameters(), *model.net.buffers()))
