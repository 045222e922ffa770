"""The model as vlbench runs it: what other runtimes are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, no_grad

from ..compression.saved import copy_saved, load_model
from ..runtime import Runtime, Serve, Served, Stage, Tensors, runtime


@runtime("torch", title="torch", packages=("torch",))
class Torch(Runtime):
    """The saved model's folder, as vlbench.load opens it."""

    tolerance = 0.0

    def refusal(self, served: Served) -> str:
        return "" if served.source else "the model was never saved"

    def write(self, served: Served, folder: Path) -> Sequence[str]:
        assert served.source is not None
        copy_saved(served.source, folder)
        return []

    def open(self, served: Served, folder: Path, threads: int) -> Mapping[str, Serve]:
        return opened_by_us(served, folder)


def opened_by_us(served: Served, folder: Path) -> Mapping[str, Serve]:
    """Stage name -> its function, of the saved model in the folder."""
    model = load_model(folder)[0]
    model.net.eval()

    def of(stage: Stage) -> Serve:
        def serve(tensors: Tensors) -> Tensor:
            with no_grad():
                return stage.compute(model, *tensors)

        return serve

    return {part.stage.name: of(part.stage) for part in served.parts}
