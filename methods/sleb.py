"""SLEB (Song et al. 2024, arXiv 2402.09025): blocks are removed one after another, each time the one without which the
calibration loss is lowest.

    next = argmin over the blocks b that are left of L(model without the removed ones and b)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pydantic import Field

from vlbench.compression.cut import Kept
from vlbench.compression.depth import BlockGates, entries, key_of, refusal
from vlbench.errors import RunFailed, UserError
from vlbench.job import Job
from vlbench.method import method
from vlbench.pruning.depth import DepthOptions, DepthPruner
from vlbench.structure import Structure

AT_ONCE = 16  # samples a forward pass of the loss


class SlebOptions(DepthOptions):
    """The search. Every removal costs a pass over the calibration samples for each block that is left."""

    calibration_samples: int = 32
    barriers: int = Field(1, ge=0, description="blocks at either end of a tower that stay, as in the published code")


@method(
    "sleb",
    title="SLEB: greedy removal of blocks by the loss",
    role="pruner",
    patterns=("structured",),
    uses_seed=True,
    paper="https://arxiv.org/abs/2402.09025",
)
class Sleb(DepthPruner):
    """Greedy over the blocks of all towers, by the loss on seeded training samples; nothing is trained. Removal ends
    where what is gone is nearest to the target."""

    Options = SlebOptions

    def check(self, structure: Structure) -> None:
        options: SlebOptions = self.options
        super().check(structure)
        inner = [entries(t.blocks[i]) for t in structure.towers for i in _inner(len(t.blocks), options.barriers)]
        most, largest = sum(inner), max(entries(b) for t in structure.towers for b in t.blocks)
        if options.barriers and options.fraction * structure.size - most > largest / 2:
            raise UserError(
                f"sparsity {options.fraction:.4g} cannot be reached with barriers={options.barriers}: at most "
                f"{most / structure.size:.4f}. Give barriers=0."
            )

    def kept(self, job: Job, structure: Structure) -> Kept:
        options: SlebOptions = self.options
        batches = job.data.calibration(options.calibration_samples, AT_ONCE)
        self.log_samples(job, [s.id for batch in batches for s in batch.samples])
        places = [(t, i) for t in structure.towers for i in range(len(t.blocks))]
        cost = [entries(t.blocks[i]) for t, i in places]
        gates = BlockGates(job.model.net, structure)

        def values(removed: Sequence[int]) -> dict[str, torch.Tensor]:
            on = {t.name: torch.ones(len(t.blocks)) for t in structure.towers}
            for number in removed:
                tower, index = places[number]
                on[tower.name][index] = 0
            return on

        def loss(removed: Sequence[int]) -> float:
            gates.set(values(removed))
            with torch.no_grad():
                return sum(float(job.loss(b)) * len(b.samples) for b in batches) / sum(len(b.samples) for b in batches)

        def legal(removed: Sequence[int]) -> bool:
            tower, index = places[removed[-1]]
            left = values(removed)[tower.name].nonzero().flatten().tolist()
            return index in _inner(len(tower.blocks), options.barriers) and not refusal(tower, left)

        def done(removed: Sequence[int], more: int) -> bool:
            gone, target = sum(cost[i] for i in removed), options.fraction * structure.size
            job.here.progress("blocks", min(gone, int(target)), int(target), f"{len(removed)} removed")
            return abs(gone + cost[more] - target) > abs(gone - target)

        order = greedy(len(places), loss, legal, done)
        gates.remove()
        job.changes.state.log.setdefault(self.name, {})["order"] = [
            f"{places[i][0].name}.{places[i][1]}" for i in order
        ]
        on = values(order)
        return {key_of(t): on[t.name].nonzero().flatten() for t in structure.towers}


def greedy(
    count: int,
    loss: Callable[[Sequence[int]], float],
    legal: Callable[[Sequence[int]], bool],
    done: Callable[[Sequence[int], int], bool],
) -> list[int]:
    """The blocks in the order of their removal. legal(removed): whether its last one may go after the others;
    done(removed, next): whether to stop before the next. Of equal losses the first block goes."""
    removed: list[int] = []
    while True:
        left = [i for i in range(count) if i not in removed and legal([*removed, i])]
        if not left:
            return removed
        values = {i: loss([*removed, i]) for i in left}
        if all(value != value for value in values.values()):
            raise RunFailed("the loss without any further block is no number: weights or data are damaged.")
        best = min(left, key=lambda i: (values[i] != values[i], values[i], i))
        if done(removed, best):
            return removed
        removed.append(best)


def _inner(blocks: int, barriers: int) -> range:
    return range(barriers, blocks - barriers)
