"""DSnoT (Zhang et al. 2024, arXiv 2310.08915): which weights a mask keeps is changed, without training.

    C_ij = W_ij * mean over samples of sum over tokens of x_j      what weight (i, j) gives to output i
    E_i  = sum of C_ij over what is pruned in row i                what the row has lost
    in turn: grow the pruned weight with the largest C (E_i > 0; the smallest for E_i < 0) / var_j^p, drop the kept one
    of least |W| ||x|| whose C has the other sign (n:m: the one of least score in the grown one's group),
    E_i <- E_i + C_dropped - C_grown, until |E_i| is small enough; where the sign has to stay, before it would change

var: the mean of the samples' variances. A weight moves once: a row stops where no candidate is left. The published
code reads on beyond them, and on small matrices loses the pattern by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from vlbench.calibration.activations import remove_left
from vlbench.calibration.statistics import Statistics
from vlbench.calibration.walk import BlockByBlock, Looking, Seen
from vlbench.disk.storage import digest
from vlbench.errors import UserError
from vlbench.job import Job
from vlbench.method import Method, method
from vlbench.options import MethodOptions
from vlbench.structure import Block


class DSnoTOptions(MethodOptions):
    """The published run: 50 cycles, 128 samples, attention alone (layers=attention)."""

    calibration_samples: int = Field(128, ge=1, description="training samples that are looked at")
    cycles: int = Field(50, ge=1, description="weights of a row that change places, at most")
    threshold: float = Field(0.1, ge=0, description="a row is left alone once its error is not larger")
    power: float = Field(1.0, ge=0, description="p: how much the variance of an input counts against growing there")
    same_sign: bool = Field(False, description="stop a row before its error changes sign; n:m always does")
    order: Literal["wanda", "magnitude"] = Field("wanda", description="n:m: the score by which a group's weight goes")
    layers: Literal["all", "attention"] = Field("all", description="attention: feed-forward layers keep their masks")


@method(
    "dsnot",
    title="DSnoT: masks changed by what their rows lose",
    role="restorer",
    uses_seed=True,
    paper="https://arxiv.org/abs/2310.08915",
)
class DSnoT(Method):
    """Follows a pruner that masks. What grows has its value in the dense model; what stays keeps its own."""

    Options = DSnoTOptions

    def apply(self, job: Job) -> None:
        options: DSnoTOptions = self.options
        changes, net = job.changes, job.model.net
        masks = changes.state.masks
        if not masks:
            raise UserError("dsnot changes masks, and nothing is masked here: put a pruner of weights before it.")
        if changes.state.cuts:
            raise UserError("dsnot takes weights from the dense model, and this one was cut: leave the cut out.")
        dense = dict(job.teacher().net.named_parameters())
        net.eval()
        whole = {name: dense[name].detach().to(net.get_parameter(name)) for name in masks}
        values = {
            name: torch.where(keep.to(whole[name].device), net.get_parameter(name).detach(), whole[name])
            for name, keep in masks.items()
        }
        n_m = group_of(changes.state.pattern)
        with torch.no_grad():  # a block is looked at as the pruner saw it: dense, behind pruned ones
            for name, weight in values.items():
                net.get_parameter(name).copy_(weight)

        def decide(block: Block, seen: Seen) -> dict[str, Tensor]:
            return {n: self.changed(whole[n], masks[n], seen[n], n_m) for n in matrices(block, masks, options.layers)}

        moved = 0
        for step in self._walk(job):
            decision = step.decided(decide)
            for name in matrices(step.block, masks, "all"):
                keep = decision.get(name, masks[name]).cpu()
                moved += int((keep & ~masks[name]).sum())
                changes.remask(name, keep)
        for name in masks.keys() - set(changes.structure.matrices):
            changes.remask(name, masks[name])
        changes.state.log.setdefault(self.name, {})["moved"] = moved

    def changed(
        self, weight: Tensor, keep: Tensor, statistics: Statistics | None, n_m: tuple[int, int] | None
    ) -> Tensor:
        """(out, in) dense weights and mask -> the changed mask."""
        assert statistics is not None
        assert statistics.moments is not None
        options: DSnoTOptions = self.options
        moments = statistics.moments
        samples = max(1, moments.samples)
        numbers = weight.double()
        gives = numbers * (moments.total / samples).double()
        growth = gives / (moments.spread / samples).double().clamp(min=torch.finfo(torch.float64).tiny).pow(
            options.power
        )
        wanda = numbers.abs() * statistics.norm.double()
        keep = keep.to(weight.device)
        if n_m is not None:
            score = wanda if options.order == "wanda" else numbers.abs()
            rows = Rows(gives, growth, keep, options.threshold, same_sign=True)
            return rows.run(options.cycles, partial(least_of_group, score=score, size=n_m[1]))
        rows = Rows(gives, growth, keep, options.threshold, same_sign=options.same_sign)
        return rows.run(options.cycles, Opposing(gives, wanda, keep))

    def _walk(self, job: Job) -> BlockByBlock:
        options: DSnoTOptions = self.options
        folder = job.here.folder / "checkpoint" / self.name
        remove_left(folder)
        batches = job.data.calibration(options.calibration_samples, 1)
        ids = [sample.id for batch in batches for sample in batch.samples]
        job.changes.state.log.setdefault(self.name, {})["calibration"] = {"samples": len(ids), "ids": digest(ids)[:12]}
        return BlockByBlock(
            job.model.net, job.changes.structure, [partial(job.loss, batch) for batch in batches],
            [job.model.image_tokens(batch) for batch in batches],
            Looking(options.calibration_samples, False, "float64", "pruned", moments=True),
            store=lambda number, path: job.here.store(self.name, f"{number:04d}", every_seconds=0.0, block=path),
            folder=folder, progress=partial(job.here.progress, "calibrate"),
        )  # fmt: skip


def matrices(block: Block, masks: Mapping[str, Tensor], layers: str) -> list[str]:
    """The block's matrices that are masked, of its attention alone where layers says so."""
    sites = [site for site in block.sites if layers == "all" or site.kind == "attention"]
    return [name for name in dict.fromkeys(m for site in sites for m in site.matrices) if name in masks]


def group_of(pattern: str) -> tuple[int, int] | None:
    """Of a pattern like structured+2:4: (n kept, m)."""
    kept, colon, size = pattern.rpartition("+")[2].partition(":")
    return (int(kept), int(size)) if colon else None


class Cursors:
    """Columns of each row in two orders, and how far each row has read in each of them. A row that has read all of one
    stays at its end."""

    def __init__(self, orders: list[Tensor], counts: list[Tensor]) -> None:
        self.orders, self.counts = orders, counts
        self.read = [torch.zeros_like(count) for count in counts]

    def next(self, which: Tensor) -> tuple[Tensor, Tensor]:
        """which: (rows,) True for the second order. -> (rows,) columns, and whether there is one. Reads on."""
        columns, there = [], []
        for order, count, read in zip(self.orders, self.counts, self.read, strict=True):
            columns.append(order.gather(1, read.clamp(max=order.shape[1] - 1)[:, None])[:, 0])
            there.append(read < count)
        self.read[0] += ~which
        self.read[1] += which
        return torch.where(which, columns[1], columns[0]), torch.where(which, there[1], there[0])


def ordered(score: Tensor, member: Tensor, *, descending: bool) -> tuple[Tensor, Tensor]:
    """(rows, columns) the members of each row first, by score; and how many there are. Of equal scores the left one
    comes first, and where descending the right one, as walking a rising order from its end."""
    if not descending:
        return torch.where(member, score, torch.inf).sort(dim=1, stable=True).indices, member.sum(1)
    from_right = torch.where(member, -score, torch.inf).flip(1).sort(dim=1, stable=True).indices
    return score.shape[1] - 1 - from_right, member.sum(1)


class Opposing:
    """Drops the kept weight of least score whose C brings the error nearer to 0."""

    def __init__(self, gives: Tensor, score: Tensor, keep: Tensor) -> None:
        parts = [ordered(score, keep & sign, descending=False) for sign in (gives < 0, gives > 0)]
        self.cursors = Cursors([order for order, _ in parts], [count for _, count in parts])

    def __call__(self, error: Tensor, grown: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        return self.cursors.next(error < 0)


def least_of_group(error: Tensor, grown: Tensor, keep: Tensor, *, score: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(rows,) the kept column of least score in the group of the grown one, and whether there is one. keep: what is
    kept and has not moved."""
    group = (grown - grown % size)[:, None] + torch.arange(size, device=grown.device)
    within = score.gather(1, group).masked_fill(~keep.gather(1, group), torch.inf)
    least, place = within.min(1)
    return group.gather(1, place[:, None])[:, 0], least.isfinite()


class Rows:
    """Every row's error, and what of it moves in each cycle. growth: (out, in) by which pruned weights are taken."""

    def __init__(self, gives: Tensor, growth: Tensor, keep: Tensor, threshold: float, *, same_sign: bool) -> None:
        self.gives, self.keep, self.threshold, self.same_sign = gives, keep.clone(), threshold, same_sign
        self.error = gives.masked_fill(keep, 0).sum(1)
        gone = ~keep
        least = ordered(growth, gone & (gives < 0), descending=False)
        parts = [least, ordered(growth, gone & (gives > 0), descending=True)]
        self.growing = Cursors([order for order, _ in parts], [count for _, count in parts])
        self.still = keep.clone()  # kept from the start, and not dropped

    def run(self, cycles: int, drop: Any) -> Tensor:
        """drop(error, grown, still): the column that goes in each row, and whether there is one."""
        every = torch.arange(len(self.gives), device=self.gives.device)
        active, sign = torch.ones_like(every, dtype=torch.bool), self.error.sign()
        for _ in range(cycles):
            grown, can_grow = self.growing.next(self.error > 0)
            dropped, can_drop = drop(self.error, grown, self.still)
            after = self.error + self.gives[every, dropped] - self.gives[every, grown]
            active &= can_grow & can_drop & (self.error.abs() > self.threshold)
            if self.same_sign:
                active &= sign == after.sign()
            if not bool(active.any()):
                break
            rows = every[active]
            self.keep[rows, grown[active]] = True
            self.keep[rows, dropped[active]] = False
            self.still[rows, dropped[active]] = False
            self.error = torch.where(active, after, self.error)
        return self.keep
