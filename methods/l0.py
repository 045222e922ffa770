"""L0 search: which heads, neurons, blocks and dimensions stay is learnt with the weights (Sheared LLaMA, Xia et al.
2024, arXiv 2310.06694; hard concrete gates of Louizos et al. 2018). Formulas: vlbench/pruning/hard_concrete.py.

    minimise over weights and a, maximise over the multipliers:    loss of the gated model + Lagrangian
    target=shape: every site, stream and tower has a count to keep, the same share everywhere; target=size: one target,
    on the entries that are expected to stay

After the last step exactly as many units stay as the target says, those of the largest a. Gates of heads and neurons
are multiplied into their weights; those of blocks and dimensions that stay become 1.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from vlbench.compression.depth import UNIT as BLOCK
from vlbench.compression.depth import key_of
from vlbench.compression.width import NEAR, entries_left, key_of_width, nearest_share, rounded, stream_of
from vlbench.compression.width import UNIT as WIDTH
from vlbench.errors import UserError
from vlbench.job import Job
from vlbench.method import Chain, Method, chain, method
from vlbench.options import PruneOptions
from vlbench.pruning.l0_search import KINDS, SITES, Search
from vlbench.pruning.scoring import WholeHeads
from vlbench.restoring.momentum import MomentumOptions
from vlbench.structure import Structure

COARSE = 16  # units: so few are met to a large part of a matrix


class L0Options(PruneOptions, MomentumOptions):
    """The search. The published one: 3200 steps, lr 1e-4 of the weights and 1 of masks and multipliers, AdamW with
    betas .9 and .95, clipped at 1 together, the target reached after a fifth of the steps."""

    steps: int = 150
    lr: float = 3e-4
    batch_size: int = 128
    beta2: float = 0.95
    clip: float = 1.0
    units: str = Field(
        "site",
        description="what has gates, like site+block+width: heads and neurons, layers, dimensions of the streams",
    )
    target: Literal["shape", "size"] = Field(
        "shape", description="shape: every site, tower and stream keeps the same share; size: a target on all entries"
    )
    shares: str = Field("", description="target=shape: shares that stay, like width:0.75+block:0.5; others follow")
    mask_lr: float = Field(0.1, gt=0, description="learning rate of the gates' parameters")
    multiplier_lr: float = Field(0.1, gt=0, description="learning rate of the multipliers, which ascend")
    target_warmup: float = Field(0.2, ge=0, le=1, description="part of the steps over which the target grows from 0")
    initial: float = Field(5.0, description="mean of the gates' parameters at first; they are clamped to log 100")
    multiple_of: int = Field(1, ge=1, description="round kept widths to a multiple of this (8 suits GPU kernels)")

    @field_validator("units")
    @classmethod
    def _units(cls, value: str) -> str:
        names = value.replace(",", "+").split("+")
        if len(set(names)) != len(names) or not set(names) <= set(KINDS):
            raise ValueError(f"{value} should be some of {', '.join(KINDS)}, joined by +")
        return "+".join(kind for kind in KINDS if kind in names)

    @field_validator("shares")
    @classmethod
    def _shares(cls, value: str) -> str:
        parse_shares(value)
        return value.replace(",", "+")

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self.units.split("+"))


def parse_shares(text: str) -> dict[str, float]:
    """ "width:0.75+block:0.5" -> {"width": 0.75, "block": 0.5}. Raises ValueError for anything else."""
    shares: dict[str, float] = {}
    for part in filter(None, text.replace(",", "+").split("+")):
        name, _, value = part.partition(":")
        try:
            share = float(value)
        except ValueError:
            share = 0.0
        if name not in KINDS or not 0 < share <= 1:
            raise ValueError(f"{part!r} should be one of {', '.join(KINDS)} and the share in (0, 1] that stays")
        shares[name] = share
    return shares


@method(
    "l0",
    title="L0 search: hard concrete gates on heads, neurons, blocks and width, cut, not finetuned",
    role="pruner",
    patterns=("structured",),
    uses_seed=True,
    paper="https://arxiv.org/abs/2310.06694",
)
class L0(WholeHeads, Method):
    """The first half of Sheared LLaMA; `sheared` is this and finetune."""

    Options = L0Options

    def check(self, structure: Structure) -> None:
        """Raise UserError for streams that cannot be narrowed and a target that these units cannot give."""
        options: L0Options = self.options
        structure = self.units(structure)
        if WIDTH in options.kinds:
            for tower in structure.towers:
                stream_of(tower)
        if unused := set(parse_shares(options.shares)) - set(options.kinds):
            raise UserError(
                f"shares={options.shares} says what stays of {unused.pop()}, and units={options.units} has none."
            )
        self.counts(structure)

    def sizes(self, structure: Structure) -> dict[str, tuple[str, int]]:
        """Key of a cut -> (kind, units), of what has gates."""
        kinds = self.options.kinds
        sizes = {site.name: (SITES, site.units) for site in structure.sites if SITES in kinds}
        if WIDTH in kinds:
            sizes |= {key_of_width(t): (WIDTH, stream_of(t).width) for t in structure.towers}
        if BLOCK in kinds:
            sizes |= {key_of(t): (BLOCK, len(t.blocks)) for t in structure.towers}
        return sizes

    def counts(self, structure: Structure) -> dict[str, int]:
        """Key of a cut -> how many units stay: shares that are given, and one for the others that meets the target.
        Then neurons and dimensions make up for what whole blocks and heads leave to the nearest of them."""
        options: L0Options = self.options
        given, sizes = parse_shares(options.shares), self.sizes(structure)

        def at(share: float) -> dict[str, Tensor]:
            multiple = {SITES: options.multiple_of, WIDTH: options.multiple_of, BLOCK: 1}
            counts = {k: rounded(n * given.get(kind, share), n, multiple[kind]) for k, (kind, n) in sizes.items()}
            return {key: torch.arange(count) for key, count in counts.items()}

        most = 1 - entries_left(structure, at(1.0)) / structure.size
        if given and most > options.fraction + NEAR:
            raise UserError(
                f"l0: shares={options.shares} removes {most:.4f} of the prunable set by itself, more than sparsity="
                f"{options.fraction:.4g}: keep a larger share, or write that sparsity."
            )
        kept = nearest_share(structure, at, options.fraction, options.multiple_of)
        coarse = {k: v for k, v in kept.items() if sizes[k][1] <= COARSE and sizes[k][0] not in given}
        if coarse and len(coarse) < len(sizes):
            with suppress(UserError):  # what is left to move is not enough: the nearest blocks and heads stand
                kept = nearest_share(structure, lambda share: {**at(share), **coarse}, options.fraction)
        return {key: len(units) for key, units in kept.items()}

    def apply(self, job: Job) -> None:
        options: L0Options = self.options
        structure, net = self.units(job.changes.structure), job.model.net
        self.check(job.changes.structure)
        loss = options.objective(job)
        counts = self.counts(structure)
        search = Search(net, structure, options, self.sizes(structure), counts, seed=job.here.seed)
        job.train("l0", options, [search], loss)
        if options.target == "size":
            counts = search.settled_counts()
        keep = search.kept(counts)
        search.finish(keep)
        log = job.changes.state.log["l0"]
        log |= {"kept": {k: len(v) for k, v in keep.items()}, "expected": round(search.expected_left(), 6)}
        job.changes.cut(keep, structure)


@chain(
    "sheared",
    title="Sheared LLaMA: L0 search, then finetuning",
    links=("l0", "finetune"),
    paper="https://arxiv.org/abs/2310.06694",
)
class Sheared(Chain):
    """Learned gates to a target shape, then finetuning."""

    recipes: ClassVar[dict[str, Any]] = {"mini": {}}
