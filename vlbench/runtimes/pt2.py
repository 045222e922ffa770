"""torch.export's own file: the same operators in the same order, so that outputs are the same bits on one machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..runtime import Runtime, Serve, Served, Tensors, runtime
from ._traced import program


@runtime("pt2", title="torch.export", packages=("torch",))
class Pt2(Runtime):
    """STAGE.pt2, opened by torch.export.load without vlbench and without any model's class."""

    tolerance = 1e-6

    def write(self, served: Served, folder: Path) -> Sequence[str]:
        for part in served.parts:
            torch.export.save(program(served.model, part), folder / f"{part.stage.name}.pt2")
        return []

    def open(self, served: Served, folder: Path, threads: int) -> Mapping[str, Serve]:
        return {part.stage.name: _opened(folder / f"{part.stage.name}.pt2") for part in served.parts}


def _opened(file: Path) -> Serve:
    module = torch.export.load(file).module()

    def serve(tensors: Tensors) -> torch.Tensor:
        with torch.no_grad():
            outputs: torch.Tensor = module(*tensors)
        return outputs

    return serve
