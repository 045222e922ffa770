"""Block-by-block calibration: what a block is called with is captured, and called again block after block.

Arguments are captured for every block: the originals replay block 0's for all, which is wrong for T5, whose later
blocks get the position bias that block 0 computed (relative output error 0.37 on a three-block toy).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import RunFailed
from ..machine.workers import ALONE, World
from ..structure import Block, Structure
from .activations import Activations, Room
from .capture import Captured, fetched, replay
from .statistics import Collector, Statistics, collecting, joined, refuse_damaged
from .tower import Finished, capture_tower

Looked = tuple[Block, Mapping[str, Statistics]]


def block_statistics(
    net: nn.Module,
    structure: Structure,
    runs: Sequence[Callable[[], Any]],
    *,
    propagate: Literal["pruned", "dense"] = "pruned",
    progress: Callable[[int, int], None] = lambda done, total: None,
    gram: bool = False,
    dtype: torch.dtype = torch.float64,
    moments: bool = False,
    skip: int = 0,
    room: Room | None = None,
    image_tokens: Sequence[Tensor | None] = (),
    world: World = ALONE,
) -> Generator[Looked]:
    """Walk the towers in order of data flow; yields each block once, with the statistics of its matrices.

    All statistics of a block come from one pass with the block still dense. Whoever iterates prunes the block before
    asking for the next one. propagate "pruned": the next block sees the pruned block's output (Wanda, SparseGPT);
    "dense": the dense one's. runs: one closure a calibration batch; padding that masks show is not counted. gram:
    collect x x^T too. moments: means and variances too, of each worker's own samples. dtype: of the sums. skip: so
    many blocks were pruned before (a run goes on after a kill). room: where hidden states are kept. image_tokens: of
    every run, (batch, tokens), True where a stream that mixes modalities has an image's token: statistics then tell
    them apart (`vision`, `text`). world: each worker has runs of its own, at least one; the statistics are summed over
    all of them.
    """
    total = sum(len(tower.blocks) for tower in structure.towers)
    done = min(total, max(0, skip))
    with closing(_replays(net, structure, runs, done, room)) as replays:
        for again in replays:
            with collecting(net, again.block, gram=gram, dtype=dtype, moments=moments) as collector:
                again(keep=propagate == "dense", seen=(collector, image_tokens))
            statistics = joined(collector.found, world)
            refuse_damaged(again.block, statistics)
            yield again.block, statistics
            done += 1
            if propagate == "pruned" and done < total:
                again(keep=True)
            progress(done, total)


def _replays(
    net: nn.Module, structure: Structure, runs: Sequence[Callable[[], Any]], skip: int, room: Room | None
) -> Generator[_Replay]:
    """The blocks after the first `skip`. Each tower is captured anew, so that it sees the towers before it pruned."""
    device = next(net.parameters()).device
    room = room or Room.here(device)
    finished: list[Finished] = []
    with ExitStack() as stack:
        for tower in structure.towers:
            first, skip = min(len(tower.blocks), skip), max(0, skip - len(tower.blocks))
            if first == len(tower.blocks):
                continue
            hidden, sides = (stack.enter_context(closing(Activations(device, room))) for _ in range(2))
            calls = capture_tower(net, structure, tower, first, runs, finished, hidden, sides)
            for index, block in enumerate(tower.blocks[first:]):
                yield _Replay(net, block, calls, index, hidden, sides)
            sides.close()
            finished.append(Finished(tower, hidden))


def collect(
    net: nn.Module, structure: Structure, runs: Sequence[Callable[[], Any]], **options: Any
) -> dict[str, Statistics]:
    """Statistics of every matrix of the dense model: one calibration for any number of targets and patterns."""
    every: dict[str, Statistics] = {}
    for _, statistics in block_statistics(net, structure, runs, propagate="dense", **options):
        every.update(statistics)
    return every


class _Replay:
    """One block called again with every call that was captured of it, on the hidden states of the moment."""

    def __init__(
        self, net: nn.Module, block: Block, calls: Sequence[Captured], index: int, hidden: Activations,
        sides: Activations,
    ) -> None:  # fmt: skip
        """Raises RunFailed where it was never called."""
        self.net, self.block, self.hidden, self.sides = net, block, hidden, sides
        self.calls = {(number, i): call for number, run in enumerate(calls) for i, call in enumerate(run[index])}
        if not self.calls:
            raise RunFailed(f"the task's loss never calls {block.path}: nothing is known of its inputs.")

    def __call__(self, *, keep: bool, seen: tuple[Collector, Sequence[Tensor | None]] | None = None) -> None:
        """keep: the block's outputs take the places of its inputs. seen: who looks on, and which tokens of each run are
        an image's."""
        for place, call in self.calls.items():
            if seen is not None and seen[1]:
                seen[0].image = seen[1][place[0]]
            whole = fetched(call, self.sides)
            given = self.hidden.get(place)
            out = replay(self.net, self.block, whole, given if whole.glue is None else given + whole.glue)
            if keep:
                self.hidden.put(place, out)
