"""How far cells are, from the files of `runs` alone, and how long they take, from those that were run.

A folder of 100,000 cells is listed once, and of a result only what is asked here is read: a record in full costs a
hundred times as much. The layout that write_json gives is relied upon and checked (a name at the beginning of a line,
after as many spaces as it is deep, can be no part of a text: JSON escapes line ends); any other file is read in full.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from ..disk import lease
from ..disk.storage import linked_folder
from ..errors import UserError
from ..plugins.workspace import package_folder
from ..records.record import SCHEMA_VERSION, read_record
from .executor import FAILED, log_file

_SCHEMA = re.compile(rb'\{\n "schema_version": (\d{1,9}),\n')
_COMPLETE = re.compile(rb'\n "complete": (true|false),\n')
_SECONDS = re.compile(rb'\n  "seconds": (\d+(?:\.\d+)?),?\n')
_PROVENANCE = b'\n "provenance": {\n'
TAIL = 4096  # bytes of a log's end that are read for its last line


@dataclass(frozen=True)
class Brief:
    """What a result says of itself. seconds: that the cell took, 0 where it does not say."""

    complete: bool
    seconds: float = 0.0


def brief(folder: str | Path) -> Brief | None:
    """Of the result of a cell's folder; None where there is none. Raises UserError where it is damaged or of a newer
    schema."""
    file = f"{folder}/result.json"
    try:
        with open(file, "rb", buffering=0, opener=_opener) as stream:
            content = stream.read() or b""
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): change its permissions.") from error
    schema, complete = _SCHEMA.match(content), _COMPLETE.search(content, content.find(b'\n "complete": '))
    if not schema or not complete or not 1 <= int(schema[1]) <= SCHEMA_VERSION or not content.endswith(b"\n}\n"):
        record = read_record(Path(file))
        return Brief(record.complete, float(record.provenance.get("seconds", 0.0)))
    seconds = _SECONDS.search(content, content.find(_PROVENANCE))
    return Brief(complete[1] == b"true", float(seconds[1]) if seconds else 0.0)


def _opener(name: str, flags: int) -> int:
    """A pipe in a result's place is empty here and not waited for."""
    return os.open(name, flags | os.O_NONBLOCK)


@dataclass
class Runs:
    """The folder of runs, read once. results: of the cells that have one; begun: the cells that have a folder at all;
    logs: those that have a log; damaged: what is wrong with results that cannot be read, where that is asked for."""

    folder: Path
    results: dict[str, Brief] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)
    logs: set[str] = field(default_factory=set)
    damaged: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, *, telling: bool = False) -> Runs:
        """Raises UserError for a result that is damaged; telling: it is noted in `damaged` instead. So are cells whose
        folders are links, of which nothing is read: a run of them is refused."""
        runs = cls(folder)
        for name, linked in _entries(folder):
            if linked:
                runs.damaged[name] = linked_folder(folder / name)
                continue
            try:
                summary = brief(f"{folder}/{name}")
            except UserError as error:
                if not telling:
                    raise
                runs.damaged[name] = str(error)
                continue
            if summary is not None:
                runs.results[name] = summary
            elif name != "logs":
                runs.begun.add(name)
        runs.logs = {name.removesuffix(".log") for name, _ in _entries(folder / "logs") if name.endswith(".log")}
        return runs

    def state(self, cell: str) -> str:
        """done, incomplete, damaged, running, failed, started or to do."""
        if cell in self.damaged:
            return "damaged"
        if cell in self.results:
            return "done" if self.results[cell].complete else "incomplete"
        if cell in self.begun and lease.held(self.folder / cell):
            return "running"
        if cell in self.logs and self.reason(cell):
            return "failed"
        return "started" if cell in self.begun and (self.folder / cell / "cell.json").is_file() else "to do"

    def reason(self, cell: str) -> str:
        """Why the cell's last attempt failed; empty where it did not, or was stopped."""
        try:
            with log_file(self.folder, cell).open("rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - TAIL))
                lines = log.read().decode("utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        return lines[-1].removeprefix(FAILED) if lines and lines[-1].startswith(FAILED) else ""

    def cells(self) -> list[str]:
        """All that is there, by name: also those that failed before they wrote anything but a log."""
        return sorted(
            self.results.keys() | self.damaged.keys() | {c for c in self.begun | self.logs if self.state(c) != "to do"}
        )


def _entries(folder: Path) -> Iterator[tuple[str, bool]]:
    """Names, and whether they are links."""
    try:
        with os.scandir(folder) as entries:
            yield from ((entry.name, entry.is_symlink()) for entry in entries if not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return


# How long cells take -----------------------------------------------------------------------------------------------


class Times:
    """Seconds that cells took. One that was never run is estimated by those whose names begin as its does, which say
    suite, task, model, method and target in this order: with the same beginning as far as there are any, here before
    those of the published boards (of another machine; enough to tell long cells from short ones)."""

    def __init__(self, runs: Runs, boards: Path | None = None) -> None:
        self._here = _by_beginning((name, result.seconds) for name, result in runs.results.items())
        self._boards = _by_beginning(_published(boards or package_folder("leaderboards") / "results"))
        self._known: dict[str, float | None] = {}

    def seconds(self, cell: str) -> float | None:
        """The estimate; None where no cell of its suite was ever run."""
        kind = kind_of(cell)
        if kind not in self._known:
            tables = [table for name in _beginnings(kind) for table in (self._here.get(name), self._boards.get(name))]
            self._known[kind] = next((median(table) for table in tables if table), None)
        return self._known[kind]


def kind_of(cell: str) -> str:
    """A cell's name without its identity and seed."""
    return re.sub(r"-s\d+$", "", cell.rpartition("-")[0])


def _beginnings(kind: str) -> Iterator[str]:
    """a-b-c, a-b, a."""
    while kind:
        yield kind
        kind = kind.rpartition("-")[0]


def _by_beginning(timed: Iterable[tuple[str, float]]) -> dict[str, list[float]]:
    by_kind: dict[str, list[float]] = defaultdict(list)
    for cell, seconds in timed:
        if seconds > 0:
            by_kind[kind_of(cell)].append(seconds)
    seconds_of: dict[str, list[float]] = defaultdict(list)
    for kind, values in by_kind.items():
        for name in _beginnings(kind):
            seconds_of[name] += values
    return seconds_of


def _published(folder: Path) -> Iterator[tuple[str, float]]:
    """Of a broken board nothing is known here: `vlbench leaderboard` tells."""
    for file in folder.glob("*/*.json"):
        content = file.read_bytes()
        seconds = _SECONDS.search(content, max(0, content.find(_PROVENANCE)))
        if seconds:
            yield file.stem, float(seconds[1])
