"""TODO vlbench/run/compress.py"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..cell.cell import Cell, told_options
from ..compression.saved import load_model
from ..compression.state import Compression
from ..model import Model


def _loaded(stage: Path, precision: str) -> tuple[Model, Compression]:
    model, state = load_model(stage)
    model.place(precision)
    return model, state


def _seed(seed: int) -> None:
    """Every link starts from the same random state, whatever ran before it in this process or in a killed one."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _described(cell: Cell) -> dict[str, Any]:
    """What a checkpoint must agree on: the cell, and in words what it is, for the sentence where it does not."""
    words = cell.spec.words
    told = {"cell": cell.id, "task": words.task, "model": cell.spec.model.name, "seed": cell.seed}
    for link in cell.spec.links:
        options = told_options(link, cell.sources.get(link.entry.name))
        told.update({f"{link.entry.name}.{name}": value for name, value in options.items()})
    return told
