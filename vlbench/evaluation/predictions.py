"""predictions.jsonl: one line a sample, appended and fsynced per batch, so that a kill loses one batch at most."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..storage import canonical, write_text
from ..task import Sample

Line = dict[str, Any]


class Predictions:
    """The lines of a running evaluation (`<name>.part`), and at the end the finished file in the split's order."""

    def __init__(self, file: Path) -> None:
        self.file, self.part = file, file.with_suffix(".part")
        self.lines: dict[str, Line] = {}
        if self.part.is_file():
            self._recover()

    def _recover(self) -> None:
        """Keep the whole lines of an interrupted run and drop a torn last one."""
        good: list[str] = []
        for text in self.part.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            try:
                line = json.loads(text)
                self.lines[line["id"]] = line
            except (ValueError, KeyError, TypeError):
                break
            if not text.endswith("\n"):
                del self.lines[line["id"]]
                break
            good.append(text)
        write_text(self.part, "".join(good))

    def add(self, lines: Sequence[Line]) -> None:
        """Append one batch and wait until the disk has it."""
        try:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            with self.part.open("a", encoding="utf-8", newline="\n") as stream:
                stream.writelines(canonical(line) + "\n" for line in lines)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise UserError(
                f"cannot write {self.part}: {error.strerror}. Free some space or choose another folder."
            ) from error
        self.lines.update({line["id"]: line for line in lines})

    def finish(self, samples: Sequence[Sample]) -> list[Line]:
        """Write the finished file, one line a sample in the split's order, and return its lines."""
        lines = [self.lines[s.id] for s in samples]
        write_text(self.file, "".join(canonical(line) + "\n" for line in lines))
        self.part.unlink(missing_ok=True)
        return lines


def read_predictions(file: Path) -> list[Line]:
    """The lines of a finished file. Raises UserError naming the file and line that is damaged."""
    lines: list[Line] = []
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            line["id"], line["status"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file}, line {number}, is damaged ({error}): delete the run's folder and run again."
            ) from None
        lines.append(line)
    return lines
