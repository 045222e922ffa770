"""The finished runs that pictures are of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..disk.storage import digest, read_sealed, standing
from ..errors import UserError
from ..leaderboard.rows import OWN_COLUMN
from ..records.record import Record, read_local


@dataclass(frozen=True)
class Run:
    """A finished run. log: what its links noted while they worked (the losses and updates of the compressed model's
    manifest), empty for a run that made no model."""

    folder: Path
    record: Record
    log: dict[str, Any]

    @property
    def model(self) -> Path:
        """The folder of the compressed model; it exists where the chain changed the model."""
        return standing(self.folder / "model")


@dataclass(frozen=True)
class Series:
    """Runs that differ in their target and seed only, by growing sparsity."""

    name: str  # for files
    title: str
    runs: tuple[Run, ...]


def open_run(folder: Path) -> Run:
    """Raises UserError where the run is not finished or its files are damaged."""
    from ..compression.saved import MANIFEST

    if not (folder / "result.json").is_file():
        raise UserError(f"{folder} is no finished run (`vlbench list runs` shows them).")
    manifest = standing(folder / "model") / MANIFEST
    log = read_sealed(manifest)["log"] if manifest.is_file() else {}
    return Run(folder, read_local(folder), log)


def series(runs: Iterable[Run]) -> list[Series]:
    """Runs grouped by what they have in common but for target and seed, in the order given."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_configuration(run.record), []).append(run)
    names = [_name(group[0].record) for group in groups.values()]
    read = []
    for (config, group), name in zip(groups.items(), names, strict=True):
        record = group[0].record
        mark = f"-{config[:6]}" if names.count(name) > 1 else ""  # two sets of options: told apart by their digest
        title = " / ".join((record.suite, record.task, record.label or record.model, record.method + mark))
        ordered = sorted(group, key=lambda run: (run.record.sparsity, run.record.seed or 0, run.record.cell))
        read.append(Series(name + mark, title, tuple(ordered)))
    return read


def by_target(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """(target as written, its runs over seeds), by growing sparsity. runs: of one series."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.record.sparsity_target, []).append(run)
    return list(groups.items())


def _name(record: Record) -> str:
    return "-".join((record.suite, record.task, record.label or record.model, record.method))


def _configuration(record: Record) -> str:
    configuration = record.configuration()
    for link in configuration["chain"]:
        link["options"] = {k: v for k, v in link["options"].items() if k not in OWN_COLUMN}
    return digest([configuration, record.pattern])
