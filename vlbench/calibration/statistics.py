"""What calibration knows of a matrix: sums over its inputs, or gradients of the loss; and how the sums are taken.

Sums are mergeable: those of two workers, or of two halves of the samples, added are those of all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RunFailed
from ..machine.workers import World
from ..structure import Block
from .moments import Moments
from .padding import Padding


@dataclass
class Statistics:
    """square_sum: (in,) over all tokens; samples: batch items; gram: (in, in) sum of x x^T, where it was asked for.
    gradient, gradient_square: (out, in) means over the samples of the loss's gradient and of its square. vision: the
    same sums over the image's tokens, where these share a stream with the text's (see `text`). moments: means and
    variances, where they were asked for; of one worker's samples."""

    square_sum: Tensor
    samples: int = 0
    gram: Tensor | None = None
    gradient: Tensor | None = None
    gradient_square: Tensor | None = None
    vision: Statistics | None = None
    moments: Moments | None = None

    @classmethod
    def zeros(
        cls,
        columns: int,
        device: torch.device,
        *,
        gram: bool = False,
        dtype: torch.dtype = torch.float64,
        moments: bool = False,
    ) -> Statistics:
        """Nothing seen yet."""
        square = torch.zeros(columns, dtype=dtype, device=device)  # (in,)
        return cls(
            square,
            0,
            torch.zeros(columns, columns, dtype=dtype, device=device) if gram else None,
            moments=Moments.zeros(columns, device, dtype) if moments else None,
        )

    @property
    def norm(self) -> Tensor:
        """(in,) root of the mean over samples of the tokens' summed squares: Wanda's ||X_j||_2 up to a constant."""
        return (self.square_sum / max(1, self.samples)).sqrt()

    @property
    def text(self) -> Statistics | None:
        """The sums over the tokens that are no image's, where the two are told apart: all less vision."""
        if self.vision is None:
            return None
        both = self.gram is not None and self.vision.gram is not None
        gram = self.gram - self.vision.gram if both else None  # type: ignore[operator]
        return Statistics((self.square_sum - self.vision.square_sum).clamp_(min=0), self.samples, gram)

    def add(self, x: Tensor, real: Tensor | None = None, image: Tensor | None = None) -> None:
        """Count inputs (..., in). A batch item is one sample, and so is a whole 2-D input, as in Wanda's code. real:
        (batch, tokens), False = padding; image: (batch, tokens), True = a token of an image."""
        if image is not None:
            if self.vision is None:
                gram, dtype = self.gram is not None, self.square_sum.dtype
                self.vision = Statistics.zeros(x.shape[-1], self.square_sum.device, gram=gram, dtype=dtype)
            self.vision.add(x, image if real is None else image & real)
        flat = x.reshape(-1, x.shape[-1]) if real is None else x[real]  # (tokens, in)
        if self.moments is not None:
            self.moments.add(
                (x if x.ndim > 2 else x[None])
                if real is None
                else (sample[mask] for sample, mask in zip(x, real, strict=True))
            )
        if self.gram is not None:
            flat = flat.to(self.gram.dtype)
            self.gram.addmm_(flat.T, flat)
        # One pass without a copy in double: the squares are exact, and so is their sum to rounding.
        norm = torch.linalg.vector_norm(flat, dim=0, dtype=self.square_sum.dtype)  # (in,)
        self.square_sum += norm.square_()
        self.samples += x.shape[0] if x.ndim > 2 else 1

    def merge(self, other: Statistics) -> None:
        """Add what another worker saw."""
        self.square_sum += other.square_sum.to(self.square_sum.device)
        if self.gram is not None and other.gram is not None:
            self.gram += other.gram.to(self.gram.device)
        for name in ("gradient", "gradient_square"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours is not None and theirs is not None:
                total = max(1, self.samples + other.samples)
                setattr(self, name, (ours * self.samples + theirs.to(ours.device) * other.samples) / total)
        if self.vision is not None and other.vision is not None:
            self.vision.merge(other.vision)
        self.samples += other.samples

    def clone(self) -> Statistics:
        """A copy that goes its own way."""
        tensors = (self.gram, self.gradient, self.gradient_square)
        gram, gradient, square = (None if t is None else t.clone() for t in tensors)
        vision = None if self.vision is None else self.vision.clone()
        moments = None if self.moments is None else self.moments.clone()
        return Statistics(self.square_sum.clone(), self.samples, gram, gradient, square, vision, moments)


def joined(statistics: Mapping[str, Statistics], world: World) -> Mapping[str, Statistics]:
    """The statistics of all workers' samples together, the same bits in every worker. Matrices share one Statistics
    where they do in each worker."""
    if world.size == 1:
        return statistics
    numbers: dict[int, int] = {}
    numbered = {
        name: [numbers.setdefault(id(seen), len(numbers)), seen.samples, seen.vision and seen.vision.samples]
        for name, seen in statistics.items()
    }
    tables: list[dict[str, list[Any]]] = [
        json.loads(text) for text in world.gather("statistics of a block", json.dumps(numbered))
    ]
    groups: dict[tuple[int, ...], Statistics] = {}
    result: dict[str, Statistics] = {}
    for name, seen in statistics.items():
        key = tuple(table[name][0] for table in tables)
        if key not in groups:
            groups[key] = _summed(seen, [table[name][1:] for table in tables], world)
        result[name] = groups[key]
    return result


def _summed(seen: Statistics, counts: Sequence[Sequence[int | None]], world: World) -> Statistics:
    """counts: of every worker, its samples, and those with tokens of an image (None where it met none)."""
    total = Statistics(seen.square_sum.clone(), sum(n or 0 for n, _ in counts), seen.gram)
    world.sum(total.square_sum)
    if total.gram is not None:
        total.gram = total.gram.clone()
        world.sum(total.gram)
    if any(n is not None for _, n in counts):
        device, dtype = total.square_sum.device, total.square_sum.dtype
        gram = total.gram is not None
        vision = seen.vision or Statistics.zeros(len(total.square_sum), device, gram=gram, dtype=dtype)
        total.vision = _summed(vision, [(n, None) for _, n in counts], world)
    return total


class Collector:
    """Statistics at the input of each of a block's matrices. Projections of one input (q, k and v of an attention)
    share one Statistics: they are told apart in the first call in which they see different tensors.

    image: (batch, tokens) of the calls to come, True = a token of an image, where the block's stream mixes modalities.
    """

    image: Tensor | None = None

    def __init__(self, net: nn.Module, block: Block, *, gram: bool, dtype: torch.dtype, moments: bool = False) -> None:
        self.names = list(dict.fromkeys(m for site in block.sites for m in site.matrices))
        self.block, self.module = block, net.get_submodule(block.path)
        self.modules = {name: net.get_submodule(name.rpartition(".")[0]) for name in self.names}
        self.found: dict[str, Statistics] = {}
        shared: dict[int, Statistics] = {}
        for name in self.names:
            weight = net.get_parameter(name)
            columns = weight.shape[1]
            if columns not in shared:
                shared[columns] = Statistics.zeros(columns, weight.device, gram=gram, dtype=dtype, moments=moments)
            self.found[name] = shared[columns]
        # The inputs of the call that is under way. They are kept until it ends, so that ids stay unique.
        self._seen: dict[str, list[tuple[Tensor, int]]] = {}

    def note(self, name: str, x: Tensor) -> None:
        self._seen.setdefault(name, []).append((x.detach(), x._version))

    def flush(self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> None:
        """Count the inputs of the call that ended; its arguments say which tokens are padding."""
        padding = Padding(self.module, self.block, args, kwargs or {})
        counted: dict[tuple[int, tuple[int, ...]], Statistics] = {}
        for name in self.names:
            inputs = self._seen.get(name, [])
            before = self.found[name]
            key = (id(before), tuple(_identity(x) for x, _ in inputs))
            if key not in counted:
                # The first of those that were together keeps the object; others begin with a copy of their past.
                others = [n for n in self.names if self.found[n] is before and n != name]
                apart = [n for n in others if tuple(_identity(x) for x, _ in self._seen.get(n, [])) != key[1]]
                if apart:
                    rest = before.clone()
                    for other in apart:
                        self.found[other] = rest
                for x, version in inputs:
                    if x._version != version:
                        raise RunFailed(f"the input of {name} is changed in place after it is read: not supported.")
                    before.add(x, padding.real(x), self._image_of(x))
                counted[key] = before
        self._seen = {}

    def _image_of(self, x: Tensor) -> Tensor | None:
        """The image's tokens of an input of the stream; None for other states (an image's own, in cross-attention)."""
        fits = self.image is not None and x.ndim == 3 and self.image.shape == x.shape[:2]
        return self.image.to(x.device) if fits and self.image is not None else None


def _identity(x: Tensor) -> int:
    """Detached views of one tensor are other objects on the same memory."""
    return hash((x.data_ptr(), x.shape, x.stride()))


@contextmanager
def collected(
    net: nn.Module, block: Block, *, gram: bool = False, dtype: torch.dtype = torch.float64
) -> Iterator[dict[str, Statistics]]:
    """Statistics at the input of each of the block's matrices, of every call inside the with-statement."""
    with collecting(net, block, gram=gram, dtype=dtype) as collector:
        yield collector.found


@contextmanager
def collecting(
    net: nn.Module, block: Block, *, gram: bool, dtype: torch.dtype, moments: bool = False
) -> Iterator[Collector]:
    """A collector that sees every call inside the with-statement; its `found` is whole after it."""
    collector = Collector(net, block, gram=gram, dtype=dtype, moments=moments)
    hooks: list[Any] = [
        module.register_forward_pre_hook(lambda _, args, name=name: collector.note(name, args[0]))
        for name, module in collector.modules.items()
    ]
    ends = lambda _, args, kwargs, out: collector.flush(args, kwargs)  # noqa: E731
    hooks.append(collector.module.register_forward_hook(ends, with_kwargs=True))
    try:
        yield collector
        collector.flush()  # calls from outside the block's forward
    finally:
        for hook in hooks:
            hook.remove()


def refuse_damaged(block: Block, statistics: Mapping[str, Statistics]) -> None:
    """Raise RunFailed naming the block and matrix whose inputs are not finite."""
    for name, seen in statistics.items():
        if not bool(torch.isfinite(seen.square_sum).all()):
            raise RunFailed(f"the inputs of {name} (block {block.path}) are not finite: weights or data are damaged.")
