"""Which engine runs a sweep, as --engine and the options that belong to one of them say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..cell.words import parse
from ..errors import UserError, did_you_mean
from .executor import Executor

ENGINES = ("local", "ray", "slurm")
OWNERS = {"--address": "ray", "--gpus-per-cell": "ray", "--slurm": "slurm"}


@dataclass(frozen=True)
class Engine:
    """An engine as the command line asks for it. Raises UserError where the options contradict one another.

    jobs: cells at a time; each engine has a default of its own.
    """

    name: str = "local"
    jobs: int | None = None
    address: str = ""
    gpus_per_cell: float | None = None
    slurm: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise UserError(f"--engine {self.name} is not known. {did_you_mean(self.name, ENGINES)}")
        given = {"--address": self.address, "--gpus-per-cell": self.gpus_per_cell is not None, "--slurm": self.slurm}
        for option, owner in OWNERS.items():
            if given[option] and owner != self.name:
                raise UserError(f"{option} belongs to --engine {owner}, and this sweep runs on --engine {self.name}.")
        parse(self.slurm)

    def start(self, runs: Path, tell: Callable[[], None]) -> Executor:
        """tell: called when a cell begins. Raises UserError where the engine is not there, or cannot run a cell."""
        # The engine first: what it refuses is told before anything is written.
        executor = self._start(runs, tell)
        from ..disk.storage import refuse_unwritable

        try:
            refuse_unwritable(runs)
        except BaseException:
            executor.close()
            raise
        return executor

    def refuse_unfit(self) -> None:
        """For a plan that is only printed: raises UserError where the cluster cannot give a cell the GPUs asked for."""
        if self.gpus_per_cell is not None:
            self._start(Path(), lambda: None).close()

    def _start(self, runs: Path, tell: Callable[[], None]) -> Executor:
        if self.name == "ray":
            from .ray_engine import RayExecutor

            return RayExecutor(runs, address=self.address, gpus=self.gpus_per_cell, jobs=self.jobs, tell=tell)
        if self.name == "slurm":
            from .slurm import SlurmExecutor

            return SlurmExecutor(runs, parse(self.slurm), jobs=self.jobs, tell=tell)
        from .local import LocalExecutor, visible_devices

        devices = visible_devices()
        return LocalExecutor(runs, self.jobs or len(devices) or 1, devices, tell)
