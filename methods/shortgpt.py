"""ShortGPT (Men et al. 2024, arXiv 2403.03853): the blocks that change their input least are removed.

    influence of a block = sum over tokens of 1 - cos(x, y)        x: its input, y: its output; where a norm is 0: 0.5

Within a tower the sum ranks the blocks as the original does; towers see other numbers of tokens, so that the mean over
them is compared across towers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from math import pi
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from vlbench.compression.cut import Kept
from vlbench.job import Job
from vlbench.method import method
from vlbench.pruning.depth import DepthOptions, DepthPruner
from vlbench.structure import Structure


class ShortGPTOptions(DepthOptions):
    """The measure."""

    influence: Literal["cosine", "angular"] = Field(
        "cosine", description="cosine: 1 - cos of a block's input and output; angular: arccos of it, over pi"
    )


@method(
    "shortgpt",
    title="ShortGPT: the blocks of least influence",
    role="pruner",
    patterns=("structured",),
    uses_seed=True,
    paper="https://arxiv.org/abs/2403.03853",
)
class ShortGPT(DepthPruner):
    """One pass over seeded training samples; nothing is trained."""

    Options = ShortGPTOptions

    def kept(self, job: Job, structure: Structure) -> Kept:
        options: ShortGPTOptions = self.options
        batches = job.data.calibration(options.calibration_samples, 1)
        self.log_samples(job, [s.id for batch in batches for s in batch.samples])
        runs = [partial(job.loss, batch) for batch in batches]
        return self.by_importance(structure, measured(job.model.net, structure, runs, options.influence))


def influence(x: Tensor, y: Tensor, measure: str = "cosine") -> Tensor:
    """(..., D) input and output of a block -> (...) of each token, in float64."""
    x, y = x.double(), y.double()
    cosine: Tensor = ((x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))).nan_to_num(nan=0.5)
    return 1 - cosine if measure == "cosine" else cosine.clamp(-1, 1).arccos() / pi


def measured(
    net: torch.nn.Module, structure: Structure, runs: Sequence[Callable[[], Any]], measure: str
) -> dict[str, Tensor]:
    """Tower -> (blocks,) mean influence over the tokens of all runs."""
    sums = {tower.name: torch.zeros(len(tower.blocks), 2, dtype=torch.float64) for tower in structure.towers}

    def looking(tower: str, index: int) -> Callable[..., None]:
        def look(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            hidden = args[0] if args else next(iter(kwargs.values()))
            score = influence(hidden, output[0] if isinstance(output, tuple) else output, measure)
            sums[tower][index] += torch.tensor([float(score.sum()), score.numel()], dtype=torch.float64)

        return look

    with ExitStack() as stack, torch.no_grad():
        for tower in structure.towers:
            for index, block in enumerate(tower.blocks):
                module = net.get_submodule(block.path)
                stack.enter_context(module.register_forward_hook(looking(tower.name, index), with_kwargs=True))
        for run in runs:
            run()
    return {name: both[:, 0] / both[:, 1].clamp(min=1) for name, both in sums.items()}
