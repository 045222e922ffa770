"""Finished runs without a training: the mini NLVR2 model, cut or masked by hand, and a record of the factory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tests.leaderboard.factory import record
from vlbench.compression.cut import Cut, cut
from vlbench.compression.masks import apply_masks
from vlbench.compression.saved import save_model
from vlbench.compression.state import Compression
from vlbench.model import Model
from vlbench.plugins.table import table
from vlbench.records.record import Link, Record, write_record
from vlbench.structure import Site
from vlbench.tensors.locate import locate

MODEL = "blip-nlvr-mini"


def mini_model() -> Model:
    entry = table("models").get(MODEL)
    cls = entry.load()
    card = next(card for card in cls.cards if card.name == MODEL)
    model: Model = cls.open(card, locate(card.checkpoint, card.revision, {}))
    return model


def finished(
    folder: Path,
    *,
    sparsity: float = 0.5,
    keep: Callable[[Site], int] | None = None,
    masks: Mapping[str, torch.Tensor] | None = None,
    log: dict[str, Any] | None = None,
    **changes: Any,
) -> Record:
    """A run in `folder`. keep: how many units a site keeps, the first ones; masks: parameter -> mask of the model that
    is left."""
    model, state = mini_model(), Compression(log=log or {}, pattern="structured", trained=True)
    if keep is not None:
        structure = model.structure()
        kept = {site.name: torch.arange(keep(site)) for site in structure.sites}
        state.cuts.append(Cut.of(structure, kept))
        cut(model.net, structure, kept)
    if masks is not None:
        apply_masks(model.net, masks)
        state.masks = dict(masks)
    save_model(folder / "model", model, state)
    made = record(
        "upop",
        **{
            "sparsity": sparsity, "pattern": "structured", "trained": True, "seed": 0, "task": "nlvr2", "model": MODEL,
            "sparsity_target": str(sparsity), "cell": folder.name,
            "chain": [Link(name="upop_search", version="1", options={"sparsity": sparsity}),
                      Link(name="finetune", version="1", options={"steps": 3})],
            **changes,
        },
    )  # fmt: skip
    write_record(folder / "result.json", made)
    return made
