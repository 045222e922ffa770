"""A stage as torch.export traces it, for the runtimes that take such programs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..model import Model
from ..runtime import Part, Stage


class Traced(nn.Module):
    """The model's weights and one stage of it as a module."""

    def __init__(self, model: Model, stage: Stage) -> None:
        super().__init__()
        self.net, self._model, self._stage = model.net, model, stage

    def forward(self, *tensors: Tensor) -> Tensor:
        return self._stage.compute(self._model, *tensors)


def program(model: Model, part: Part) -> ExportedProgram:
    """The stage with its named dimensions left open. The example's rows only say types and fixed sizes."""
    # DYNAMIC: which sizes are equal, and how large they may be (a text's positions), torch finds out; that one cannot
    # vary is an error.
    shapes = tuple({i: Dim.DYNAMIC for i, d in enumerate(dims) if d} for dims in part.stage.inputs.values())
    module = Traced(model, part.stage).eval()
    with torch.no_grad():
        return torch.export.export(module, part.example, dynamic_shapes=(shapes,))
