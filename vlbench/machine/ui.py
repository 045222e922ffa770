"""Progress and messages for people: bars on a terminal, plain lines elsewhere, nothing with --json."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_EVERY = 10.0  # seconds between two progress lines where the output is no terminal


class Screen:
    """Where progress goes. Everything is written to stderr, so that stdout holds the result alone."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.bars = not quiet and sys.stderr.isatty()
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._lines: dict[str, tuple[float, float]] = {}

    def __enter__(self) -> Screen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def say(self, text: str) -> None:
        """One line."""
        if not self.quiet:
            if self._progress is not None:
                self._progress.console.print(text, highlight=False)
            else:
                print(text, file=sys.stderr, flush=True)

    def building(self, done: int, total: int) -> None:
        """Progress of the mini world, which is built once."""
        self.progress("mini world", done, total)

    def digesting(self, done: int, total: int) -> None:
        """Progress of the digests of images, each of which is read once."""
        self.progress("digest of images", done, total)

    def progress(self, what: str, done: int, total: int, text: str = "") -> None:
        """`done` of `total` of the stage `what`."""
        if self.quiet:
            return
        if self.bars:
            self._bar(what, done, total, text)
        else:
            self._line(what, done, total, text)

    def _bar(self, what: str, done: int, total: int, text: str) -> None:
        if self._progress is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"), console=Console(stderr=True),
            )  # fmt: skip
            self._progress.start()
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, note=text)
        self._progress.update(self._tasks[what], completed=done, total=total, note=text)

    def _line(self, what: str, done: int, total: int, text: str) -> None:
        """A line when a stage has lasted LINE_EVERY seconds, then every LINE_EVERY seconds, and at its end."""
        now = time.monotonic()
        started, last = self._lines.setdefault(what, (now, now))
        if now - last >= LINE_EVERY or (done == total and last > started):
            self._lines[what] = (started, now)
            rate = done / max(now - started, 1e-9)
            left = f", {(total - done) / rate:.0f} s left" if done < total and rate else ""
            print(f"{what}: {done}/{total}{left}{'  ' + text if text else ''}", file=sys.stderr, flush=True)
        if done == total:
            self._lines.pop(what, None)
