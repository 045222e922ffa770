"""A folder that can be uploaded to the hub as it is: the saved model, its loader, and a model card of the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..compression.export import write_stock
from ..disk.storage import write_text
from ..runtime import Runtime, Serve, Served, runtime
from ._model_card import model_card
from .torch import opened_by_us

CARD = "README.md"  # the hub's name of a model card


@runtime("hub-folder", title="a folder for the hub", packages=("torch",))
class HubFolder(Runtime):
    """config.json, *.safetensors, load.py where a library opens the model, and README.md: what the record says of it.
    Reopened by vlbench.load, whose outputs are the run's to the last bit."""

    tolerance = 0.0

    def refusal(self, served: Served) -> str:
        return "" if served.source else "nothing was done to it: upload the checkpoint that it came from"

    def write(self, served: Served, folder: Path) -> Sequence[str]:
        assert served.source is not None
        assert served.record is not None
        loader = write_stock(served.source, served.model, served.state, folder)
        write_text(folder / CARD, model_card(served.record, served.model.card, loader=loader))
        return [f"{CARD} is the model card: read it, and say there what only you know."]

    def open(self, served: Served, folder: Path, threads: int) -> Mapping[str, Serve]:
        return opened_by_us(served, folder)
