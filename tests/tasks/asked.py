"""What the tests of written answers share: tasks made on a folder, recorded verdicts, and images of no content."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tests.beside import SHARED, needs
from vlbench.plugins.table import table
from vlbench.task import Sample

FAMILIES, POPE = SHARED / "oracles" / "families", SHARED / "data" / "pope_mini"
recorded_here = needs(FAMILIES)
pope_here = needs(POPE)


def recorded(name: str) -> Any:
    return json.loads((FAMILIES / f"{name}_a.json").read_text())


def make(name: str, root: Path, **options: Any) -> Any:
    cls = table("tasks").get(name).load()
    return cls(root, cls.Options(**options))


def totals(task: Any, samples: Sequence[Sample], said: Iterable[str]) -> dict[str, float]:
    """The metrics of these answers, as a run computes them."""
    scores = task.scores(samples, [{"answer": text} for text in said])
    found: dict[str, float] = task.aggregate(samples, scores)
    return found


def draw(path: Path, grey: int = 0) -> None:
    """A picture of a few pixels; a PNG whatever its name says, as readers go by content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (grey % 256, grey // 256 % 256, 0)).save(path, format="PNG")
