"""Pruners of whole blocks: the options, the target and the cut; which blocks go is the method's formula."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ..compression.cut import Kept
from ..compression.depth import choose_blocks
from ..disk.storage import digest
from ..job import Job
from ..method import Method
from ..options import PruneOptions
from ..structure import Structure


class DepthOptions(PruneOptions):
    """Options of pruners of whole blocks."""

    allocation: Literal["global", "uniform"] = Field(
        "global",
        description="global: one ranking over the blocks of all towers; uniform: all towers lose the same",
    )
    calibration_samples: int = Field(128, ge=1, description="training samples that are looked at")


class DepthPruner(Method):
    """Removes whole blocks until the removed part of the prunable set is nearest to the target."""

    Options: ClassVar[type[DepthOptions]] = DepthOptions

    def check(self, structure: Structure) -> None:
        """Raise UserError where the blocks that may go are not enough."""
        options: DepthOptions = self.options
        any_order = {t.name: Tensor([float(i) for i in range(len(t.blocks))]) for t in structure.towers}
        choose_blocks(structure, any_order, options.fraction, uniform=options.allocation == "uniform")

    @abstractmethod
    def kept(self, job: Job, structure: Structure) -> Kept:
        """The blocks that stay, under the keys of `compression.depth`."""

    def apply(self, job: Job) -> None:
        structure = job.changes.structure
        self.check(structure)
        job.model.net.eval()
        keep = self.kept(job, structure)
        log = job.changes.state.log.setdefault(self.name, {})
        log["blocks"] = {name: blocks.tolist() for name, blocks in keep.items()}
        job.changes.cut(keep, structure)

    def by_importance(self, structure: Structure, importance: dict[str, Tensor]) -> Kept:
        """The choice of a method that scores every block once. importance: tower -> (blocks,)."""
        uniform = self.options.allocation == "uniform"
        return choose_blocks(structure, importance, self.options.fraction, uniform=uniform)

    def log_samples(self, job: Job, ids: list[str]) -> None:
        log = job.changes.state.log.setdefault(self.name, {})
        log["calibration"] = {"samples": len(ids), "ids": digest(ids)[:12]}
