"""Training by several workers: what each of them does of a step, and how their gradients become one.

A step's batch is a function of (seed, step); each worker takes a part of it, weighted as gradient accumulation weights
parts, so that the sum over the workers is the gradient of the whole batch to rounding. Every worker then moves alike.
Gradients are summed plainly, in one fixed order, after the backward pass: torch's DistributedDataParallel would overlap
the two, but it sees parameters of a wrapped forward only (gates lie outside the network, and a loss calls several parts
of a model), averages where parts weigh unlike, and misses parameters that a part does not use.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import RunFailed
from ..machine.device import computing_device
from ..machine.workers import World

BUCKET = 1 << 24  # entries that are summed at once: 64 MB beside the gradients in single precision
DRIFT = 1e-3  # relative difference of norms at which workers have not trained the same model


def join(leaves: Sequence[Tensor], value: float, world: World) -> float:
    """Sum the gradients of `leaves` over the workers, in place, and return the sum of `value`.

    A leaf that has a gradient in one worker gets it in all; one that has none anywhere keeps none, so that the
    optimiser leaves it alone as it does in one process.
    """
    device = leaves[0].device if leaves else torch.device("cpu")
    numbers = torch.tensor([value, *(leaf.grad is not None for leaf in leaves)], dtype=torch.float64, device=device)
    world.sum(numbers)
    total, *having = numbers.tolist()
    gradients = []
    for leaf, count in zip(leaves, having, strict=True):
        if count:
            leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            gradients.append(leaf.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        world.sum(flat)
        for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))
    return float(total)


def summed(count: int, world: World) -> int:
    """The sum of a count over the workers."""
    total = torch.tensor([count], dtype=torch.int64, device=computing_device())
    world.sum(total)
    return int(total)


def mixed(seed: int, step: int, rank: int) -> int:
    """A seed for torch that is another one for each (seed, step, rank)."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])


def refuse_drift(state: Mapping[str, Tensor], world: World) -> None:
    """Raise RunFailed, naming a tensor, where a worker's is another than the leader's. What a method computes from its
    worker's part of a batch and does not sum would show here, and nowhere else."""
    norms = [torch.linalg.vector_norm(t.double()).item() if t.numel() else 0.0 for t in state.values()]
    # Not finite is said by a loss; JSON has no word for it.
    norms = [norm if math.isfinite(norm) else -1.0 for norm in norms]
    for name, own, first in zip(
        state, norms, json.loads(world.share("norms of what is trained", json.dumps(norms))), strict=True
    ):
        if abs(own - first) > DRIFT * max(abs(own), abs(first)):
            raise RunFailed(
                f"{name} is another in worker {world.rank} than in worker 0: the method keeps what its worker alone "
                "has seen or drawn. Run it in one process, or sum that with job.here.world."
            )


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The gradients in order, in groups of one type and device and about BUCKET entries."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        alike = not bucket or (bucket[0].dtype, bucket[0].device) == (gradient.dtype, gradient.device)
        if bucket and (not alike or sum(g.numel() for g in bucket) + gradient.numel() > BUCKET):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
