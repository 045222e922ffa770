"""predictions.jsonl: one line a sample, appended and fsynced per batch, so that a kill loses one batch at most."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..disk import checksums
from ..disk.storage import cannot_write, canonical, read_json, write_json, write_text
from ..errors import UserError
from ..machine.workers import ALONE, World
from ..task import Sample

Line = dict[str, Any]
KEYS = ("id", "prediction", "score", "status")
# Key of a part's line, of it and its folder's name: a damaged one, or another cell's, may be valid JSON.
SUM = "crc32"
PASSES = ("predictions", "embeddings", "pairs")  # names of the files an evaluation writes


class Predictions:
    """The lines of a running evaluation (`<name>.part`, one a worker), and at the end the finished file in the split's
    order. A line of the parts has no score yet.

    What an earlier run left is taken over: the whole lines of its parts, or the finished file where it was killed
    between that and its record (UserError where that is damaged or another cell's). Lines of samples that failed are
    not: what failed then may be mended now.
    `fits` is the batch size left after running out of memory, None where that did not happen.
    """

    def __init__(self, file: Path, world: World = ALONE) -> None:
        self.file, self.world, self._limit = file, world, file.with_suffix(".fits")
        self.part = file.with_suffix(f".part{world.rank}" if world.rank else ".part")
        self.lines: dict[str, Line] = {}
        self.fits: int | None = int(read_json(self._limit)["batch_size"]) if self._limit.is_file() else None
        if parts := self._parts():
            self._keep([line for part in parts for line in _whole_lines(part)])
        elif self.file.is_file():
            (checksums.take if world.leads else checksums.check)(self.file.parent, self.file.name)
            self._keep(read_predictions(self.file))
        world.barrier(f"read {file.name}")  # nobody writes before everybody has read
        if self.part in parts:  # without what was torn
            write_text(self.part, "".join(self._row(line) for line in _whole_lines(self.part)))

    def beside(self, name: str) -> Predictions:
        """The lines of another pass over the same samples, `name`.jsonl in the same folder."""
        return Predictions(self.file.with_name(f"{name}.jsonl"), self.world)

    def _parts(self) -> list[Path]:
        return sorted(self.file.parent.glob(f"{self.file.stem}.part*"))

    def _keep(self, lines: Sequence[Line]) -> None:
        self.lines = {line["id"]: line for line in lines if line["status"] == "ok"}

    def add(self, lines: Sequence[Line]) -> None:
        """Append one batch and wait until the disk has it."""
        rows = [self._row(line) for line in lines]
        try:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            with self.part.open("a", encoding="utf-8", newline="\n") as stream:
                stream.writelines(rows)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise cannot_write(self.part, error) from error
        # As a resumed run would read them: tuples are lists in both.
        self.lines.update((line["id"], line) for line in json.loads(canonical(lines)))

    def _row(self, line: Line) -> str:
        """A line of the part."""
        return canonical({**line, SUM: _checksum(self.part, line)}) + "\n"

    def limit(self, size: int) -> None:
        """Batches of more than `size` samples do not fit into memory: remembered for the runs that resume this one."""
        self.fits = size
        write_json(self._limit, {"batch_size": size})

    def gather(self, samples: Sequence[Sample]) -> list[Line]:
        """All workers' lines, when all are done: one a sample, in the order of `samples`, the same in each worker."""
        if self.world.size > 1:
            self.world.barrier(f"{self.file.name} is predicted")
            for part in self._parts():
                self.lines.update((line["id"], line) for line in _whole_lines(part))
            self.world.barrier(f"parts of {self.file.name} are read")  # nobody removes parts before everybody has read
        return [self.lines[s.id] for s in samples]

    def finish(self, lines: Sequence[Line]) -> list[Line]:
        """Write the finished file, `lines` in the split's order, and return them."""
        if self.world.leads:
            checksums.forget(self.file.parent, self.file.name)
            write_text(self.file, "".join(canonical(line) + "\n" for line in lines))
            checksums.note(self.file.parent, self.file.name)
            for part in self._parts():
                part.unlink()
        return list(lines)

    def discard(self) -> None:
        """Remove everything: the lines were a means to others that are written."""
        if self.world.leads:
            discard(self.file)


def discard(file: Path) -> None:
    """Remove the finished file of predictions and what an unfinished run left of it."""
    checksums.forget(file.parent, file.name)
    for path in [file, *file.parent.glob(f"{file.stem}.part*"), file.with_suffix(".fits")]:
        path.unlink(missing_ok=True)


def _whole_lines(part: Path) -> list[Line]:
    """The whole lines of an interrupted run; what follows a torn or damaged one is predicted again."""
    try:
        text = part.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{part} cannot be read ({error.strerror}): delete it and run again.") from error
    lines: list[Line] = []
    for row in text.split("\n")[:-1]:  # behind the last newline is nothing, or a torn line
        try:
            line = _line(row)
        except (ValueError, TypeError):
            break
        if line.pop(SUM, None) != _checksum(part, line):
            break
        lines.append(line)
    return lines


def _checksum(part: Path, line: Line) -> int:
    return zlib.crc32(f"{part.absolute().parent.name}\n{canonical(line)}".encode())


def _line(text: str) -> Line:
    """Raises ValueError or TypeError where `text` is no line of ours."""
    line = json.loads(text)
    if not isinstance(line, dict):
        raise TypeError(f"it is a {type(line).__name__}")
    lacking = [key for key in KEYS if key not in line]
    if lacking or not isinstance(line["id"], str):
        raise ValueError(f"it lacks {', '.join(lacking) or 'a text as id'}")
    return line


def read_predictions(file: Path, ids: Sequence[str] | None = None) -> list[Line]:
    """The lines of a finished file; with `ids`, exactly these in this order. Raises UserError naming the file and
    line that is damaged."""
    try:
        rows = file.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error}): delete the run's folder and run again.") from None
    if rows.pop():
        raise UserError(f"{file} is damaged (its last line is torn): delete the run's folder and run again.")
    lines: list[Line] = []
    for number, row in enumerate(rows, 1):
        try:
            lines.append(_line(row))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{file}, line {number}, is damaged ({error}): delete the run's folder and run again."
            ) from None
    if ids is not None and [line["id"] for line in lines] != list(ids):
        raise UserError(
            f"{file} is damaged ({len(lines)} lines, which are not the split's {len(ids)} samples): "
            "delete the run's folder and run again."
        )
    return lines
