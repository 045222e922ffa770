"""A stage as torch.export traces it, for the runtimes that take such programs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..model import Model
from ..runtime import Part, Served, Stage


class Traced(nn.Module):
    """The model's weights and one stage of it as a module."""

    def __init__(self, model: Model, stage: Stage) -> None:
        super().__init__()
        self.net, self._model, self._stage = model.net, model, stage

    def forward(self, *tensors: Tensor) -> Tensor:
        return self._stage.compute(self._model, *tensors)


def emptied(served: Served, *kinds: str) -> str:
    """In words that end a sentence: that a layer of these kinds has no unit left. "" where each has some."""
    gone = [site.name for site in served.model.structure().sites if site.kind in kinds and site.emptied]
    more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
    return f"it reads no layer of which nothing is left, as of {gone[0]}{more}" if gone else ""


def program(model: Model, part: Part) -> ExportedProgram:
    """The stage with its named dimensions left open. The example's rows only say types and fixed sizes."""
    # DYNAMIC: which sizes are equal, and how large they may be (a text's positions), torch finds out; that one cannot
    # vary is an error.
    shapes = tuple({i: Dim.DYNAMIC for i, d in enumerate(dims) if d} for dims in part.stage.inputs.values())
    module = Traced(model, part.stage).eval()
    with torch.no_grad():
        return torch.export.export(module, part.example, dynamic_shapes=(shapes,))
