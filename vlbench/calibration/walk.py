"""The walk over a model's blocks, each with what was learnt of its inputs, once.

A pruner iterates over a walk and says what it decides of each block; whether a block was decided before a kill, whether
its statistics come from another cell, and whether other workers look at other samples is the walk's business:

    for step in walk:
        decisions.add(step.decided(decisions.of_block))

Which walk it is follows from the method's options: AtOnce where a score reads no inputs (or gradients, which are all
there at once), BlockByBlock where it reads the inputs of each block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..machine.memory import KEPT, return_heap
from ..machine.workers import ALONE, World
from ..structure import Block, Structure
from ..tensors.checkpoint import CheckpointStore
from .activations import Room
from .blocks import Looked, block_statistics
from .shared import SharedWith, shared_statistics
from .statistics import Statistics

Seen = Mapping[str, Statistics | None]
Decision = Mapping[str, Tensor]
Decide = Callable[[Block, Seen], dict[str, Tensor]]


class Step:
    """One block of a walk.

    settle: (block, decide) -> the decision. It calls `decide` where the block was not decided before, writes down what
    it gives, and returns the same in every worker.
    """

    def __init__(self, block: Block, settle: Callable[[Block, Decide], Decision]) -> None:
        self.block, self._settle = block, settle

    def decided(self, decide: Decide) -> Decision:
        """What decide(block, its statistics) gives: now, or before this run was interrupted. To be called once."""
        decision = self._settle(self.block, decide)
        return_heap(KEPT)
        return decision


class Walk(ABC):
    """Every block of a structure once, in order of data flow."""

    @abstractmethod
    def __iter__(self) -> Iterator[Step]: ...


@dataclass(frozen=True)
class AtOnce(Walk):
    """No forward pass: every block is told the same `statistics`, by matrix; none of them where a score needs none."""

    structure: Structure
    statistics: Seen

    def __iter__(self) -> Iterator[Step]:
        for tower in self.structure.towers:
            for block in tower.blocks:
                yield Step(block, lambda block, decide: decide(block, self.statistics))


@dataclass(frozen=True)
class Looking:
    """How statistics are taken. gram: products x x^T too; dtype: of the sums; propagate: what the next block sees;
    moments: means and variances, too, which are shared with no other cell."""

    samples: int
    gram: bool
    dtype: Literal["float64", "float32"]
    propagate: Literal["pruned", "dense"]
    moments: bool = False

    @property
    def key(self) -> dict[str, Any]:
        """Of two walks for which this is the same, the statistics of the same dense model are the same."""
        words = {"samples": self.samples, "dtype": self.dtype, "gram": self.gram}
        return {f"calibration.{name}": value for name, value in words.items()}


@dataclass(frozen=True)
class BlockByBlock(Walk):
    """Statistics of each block's inputs, block after block.

    runs: a closure a calibration batch, which calls the task's loss; image_tokens: of every run, see
    `block_statistics`. store: block's number and path -> where its decision lies: it is on disk before the next block
    is begun. folder: for activations that memory does not hold. shared: the cells that take the same statistics, None
    where nothing can be shared. Several workers share the runs; the leading one decides, the others read its files.
    """

    net: nn.Module
    structure: Structure
    runs: Sequence[Callable[[], Any]]
    image_tokens: Sequence[Tensor | None]
    looking: Looking
    store: Callable[[int, str], CheckpointStore]
    folder: Path
    world: World = ALONE
    shared: SharedWith | None = None
    progress: Callable[[int, int, str], None] = lambda done, total, text: None

    def __iter__(self) -> Iterator[Step]:
        blocks = [block for tower in self.structure.towers for block in tower.blocks]
        stores = [self.store(number, block.path) for number, block in enumerate(blocks)]
        done = 0
        while done < len(blocks) and (state := stores[done].load()) is not None:
            yield Step(blocks[done], partial(_as_before, self._moved(state[1])))
            done += 1
        common = self.shared if self.looking.propagate == "dense" and not self.looking.moments else None

        def waits(text: str) -> None:
            self.progress(0, len(blocks), text)

        with shared_statistics(common, self.looking.key, self.net, self.world, waits, done) as shared:
            if shared.statistics is not None:
                for block, store in zip(blocks[done:], stores[done:], strict=True):
                    yield self._step(block, shared.statistics, store)
                return
            with closing(self._looked(done)) as looked:
                for (block, statistics), store in zip(looked, stores[done:], strict=True):
                    shared.add(statistics)
                    yield self._step(block, statistics, store)
            shared.save()

    def _looked(self, done: int) -> Generator[Looked]:
        """(block, statistics) of every block but the first `done`."""
        world = self.world if len(self.runs) >= self.world.size else ALONE  # too few to share: each looks at all
        mine = slice(world.rank, None, world.size)
        return block_statistics(
            self.net, self.structure, self.runs[mine], propagate=self.looking.propagate, gram=self.looking.gram,
            dtype=getattr(torch, self.looking.dtype), skip=done, room=Room.here(self._device, self.folder),
            progress=lambda done, total: self.progress(done, total, ""), image_tokens=self.image_tokens[mine],
            world=world, moments=self.looking.moments,
        )  # fmt: skip

    def _step(self, block: Block, statistics: Seen, store: CheckpointStore) -> Step:
        def settle(block: Block, decide: Decide) -> Decision:
            decision = dict[str, Tensor]()
            if self.world.leads:
                decision = decide(block, statistics)
                store.save(0, {name: tensor.cpu().contiguous() for name, tensor in decision.items()}, {})
            if self.world.size > 1 and (state := store.load()) is not None:
                decision = self._moved(state[1])
            return decision

        return Step(block, settle)

    @property
    def _device(self) -> torch.device:
        return next(self.net.parameters()).device

    def _moved(self, decision: Decision) -> dict[str, Tensor]:
        return {name: tensor.to(self._device) for name, tensor in decision.items()}


def _as_before(decision: Decision, block: Block, decide: Decide) -> Decision:
    """Settles a block whose decision an earlier run has written down."""
    return decision
