"""predictions.jsonl: one line a sample, appended and fsynced per batch, so that a kill loses one batch at most."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..storage import cannot_write, canonical, read_json, write_json, write_text
from ..task import Sample

Line = dict[str, Any]
KEYS = ("id", "prediction", "score", "status")


class Predictions:
    """The lines of a running evaluation (`<name>.part`), and at the end the finished file in the split's order.

    What an earlier run left is taken over: the whole lines of the part, or the finished file where it was killed
    between that and its record. Lines of samples that failed are not: what failed then may be mended now.
    `fits` is the batch size left after running out of memory, None where that did not happen.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.part, self._limit = file, file.with_suffix(".part"), file.with_suffix(".fits")
        self.lines: dict[str, Line] = {}
        self.fits: int | None = int(read_json(self._limit)["batch_size"]) if self._limit.is_file() else None
        if self.part.is_file():
            self._recover()
        elif self.file.is_file():
            self._keep(read_predictions(self.file))

    def _recover(self) -> None:
        """Keep the whole lines of an interrupted run; what follows a torn or damaged one is predicted again."""
        try:
            text = self.part.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise UserError(f"{self.part} cannot be read ({error.strerror}): delete it and run again.") from error
        found: list[Line] = []
        for row in text.split("\n")[:-1]:  # behind the last newline is nothing, or a torn line
            try:
                found.append(_line(row))
            except (ValueError, TypeError):
                break
        self._keep(found)
        write_text(self.part, "".join(canonical(line) + "\n" for line in self.lines.values()))

    def _keep(self, lines: Sequence[Line]) -> None:
        self.lines = {line["id"]: line for line in lines if line["status"] == "ok"}

    def add(self, lines: Sequence[Line]) -> None:
        """Append one batch and wait until the disk has it."""
        rows = [canonical(line) for line in lines]
        try:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            with self.part.open("a", encoding="utf-8", newline="\n") as stream:
                stream.writelines(row + "\n" for row in rows)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise cannot_write(self.part, error) from error
        # As a resumed run would read them: tuples are lists in both.
        self.lines.update((line["id"], line) for line in map(json.loads, rows))

    def limit(self, size: int) -> None:
        """Batches of more than `size` samples do not fit into memory: remembered for the runs that resume this one."""
        self.fits = size
        write_json(self._limit, {"batch_size": size})

    def finish(self, samples: Sequence[Sample]) -> list[Line]:
        """Write the finished file, one line a sample in the split's order, and return its lines."""
        lines = [self.lines[s.id] for s in samples]
        write_text(self.file, "".join(canonical(line) + "\n" for line in lines))
        self.part.unlink(missing_ok=True)
        return lines


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
