"""Samples that a method calibrates on, or learns from, in the place of the task's train split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..task import Sample, digest_samples


@dataclass(frozen=True)
class Source:
    """Samples in the place of the task's train split. pinned: a digest that is known without reading. content: gives
    the digest of what samples show. taught: the words around their questions, None for those of the cell's own task.
    The samples are read, turned into the task's and compared with its report split when they are first asked for."""

    text: str
    read: Callable[[], list[Sample]]
    pinned: str | None = None
    content: Callable[[Sequence[Sample]], str] = lambda samples: ""
    taught: Mapping[str, Any] | None = None

    @cached_property
    def samples(self) -> list[Sample]:
        return self.read()

    @cached_property
    def digest(self) -> str:
        """Of the samples and of what they show, wherever their files lie."""
        return self.pinned or digest_samples(self.samples, self.content(self.samples))

    @property
    def name(self) -> str:
        """As records have it: a task's name; of a file its name and digest, and never the folder."""
        file = Path(self.text)
        return f"{file.name}:{self.digest[:12]}" if self.pinned is None and file.is_file() else self.text


def refuse_few(samples: Sequence[Sample], count: int, name: str) -> None:
    """Raise UserError where they show fewer than `count` images: calibration takes one sample an image."""
    images = len({sample.images for sample in samples})
    if images < count:
        raise UserError(
            f"{count} calibration samples were asked for, and {name} shows {images} images: give calibration_samples= "
            "that many or fewer."
        )
