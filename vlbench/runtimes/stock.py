"""The library's own classes, as `vlbench export` writes them: load.py, stock.json and the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from runpy import run_path

from torch import Tensor, no_grad

from ..compression.export import why_no_library, write_stock
from ..nn.stock import LOADER
from ..runtime import Runtime, Serve, Served, Stage, Tensors, runtime


@runtime("stock", title="the library's own classes", packages=("torch",))
class Stock(Runtime):
    """load.py is opened as a user opens it, and stands in the place of the model's own network."""

    tolerance = 1e-5

    def refusal(self, served: Served) -> str:
        if served.source is None:
            return "it was never cut, and the checkpoint that it came from is what its library opens"
        if why := why_no_library(served.model, served.state):
            return why
        stock = served.model.stock()
        network = stock is not None and "network.py" in stock.files
        return "no library has a class of it, so that network.py, which is ours, would be compared" if network else ""

    def write(self, served: Served, folder: Path) -> Sequence[str]:
        assert served.source is not None
        write_stock(served.source, served.model, served.state, folder)
        return []

    def open(self, served: Served, folder: Path, threads: int) -> Mapping[str, Serve]:
        model = copy(served.model)
        model.net = run_path(str(folder / LOADER))["load"](folder)

        def of(stage: Stage) -> Serve:
            def serve(tensors: Tensors) -> Tensor:
                with no_grad():
                    return stage.compute(model, *tensors)

            return serve

        return {part.stage.name: of(part.stage) for part in served.parts}
