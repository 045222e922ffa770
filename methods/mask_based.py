"""Mask-based pruning: the baseline of UPop's paper, after ViT-Slimming (Chavan et al. 2022, arXiv 2201.00814).

Gates zeta on all units are trained with the weights on L + lambda sum |zeta|; after the last step every site loses the
units of its smallest |zeta|, the same fraction everywhere.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from vlbench.compression.gates import Gates
from vlbench.job import Job
from vlbench.method import Chain, Context, Method, chain, method
from vlbench.options import PruneOptions
from vlbench.pruning.allocation import refuse_unreachable, uniform
from vlbench.pruning.learned_gates import LearnedGates
from vlbench.restoring.momentum import MomentumOptions
from vlbench.structure import Structure

from . import _upop_recipes as lengths


class MaskOptions(PruneOptions, MomentumOptions):
    """The training of the gates. UPop's paper does not say how its mask-based rows were trained: the strengths are
    those that its scripts have for DeiT."""

    steps: int = 150
    lr: float = 3e-4
    batch_size: int = 128
    decay: Literal["cosine", "constant", "poly"] = "constant"
    l1_attention: float = Field(4.8e-3, ge=0, description="strength of the L1 penalty on gates of attention units")
    l1_ffn: float = Field(2e-4, ge=0, description="strength of the L1 penalty on gates of feed-forward units")
    multiple_of: int = Field(1, ge=1, description="round kept widths to a multiple of this (8 suits GPU kernels)")


def _small_batches(context: Context) -> dict[str, Any]:
    """As finetune has them: see there."""
    return dict(context.says("mini"))


@method(
    "mask_based_search",
    title="Learned masks with L1, a uniform ratio, cut, not finetuned",
    role="pruner",
    patterns=("structured",),
    uses_seed=True,
    paper="https://arxiv.org/abs/2201.00814",
)
class MaskBasedSearch(Method):
    """The first half of mask-based pruning; `mask_based` is this and finetune. The gates of the units that stay are
    multiplied into their weights, so that the cut keeps what was trained."""

    Options = MaskOptions
    parallel = True
    recipes = {"mini": _small_batches}  # noqa: RUF012

    def check(self, structure: Structure) -> None:
        cost = {s.name: float(s.entries_per_unit) for s in structure.sites}
        units = {s.name: s.units for s in structure.sites}
        refuse_unreachable(units, cost, self.options.fraction, self.options.multiple_of)

    def apply(self, job: Job) -> None:
        options: MaskOptions = self.options
        structure = job.changes.structure
        self.check(structure)
        loss = options.objective(job)
        gates = Gates(job.model.net, structure)
        strength = {"attention": options.l1_attention, "ffn": options.l1_ffn}
        penalty = {site.name: strength[site.kind] for site in structure.sites}
        job.train("mask_based_search", options, [LearnedGates(gates, penalty, options)], loss)
        size = {name: gate.detach().abs().cpu() for name, gate in gates.value.items()}
        gates.fold()
        job.changes.cut(uniform(size, options.fraction, options.multiple_of), structure)


@chain(
    "mask_based",
    title="Mask-based pruning (ViT-Slimming)",
    links=("mask_based_search", "finetune"),
    paper="https://arxiv.org/abs/2201.00814",
)
class MaskBased(Chain):
    """Learned masks with a uniform ratio, then finetuning."""

    recipes = {"mini": {}, "paper": lengths.masks}  # noqa: RUF012
