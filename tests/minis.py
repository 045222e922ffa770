"""The mini models, compressed in every way that changes what has to be saved."""

from __future__ import annotations

from pathlib import Path

import torch

from vlbench.compression.cut import Cut, Kept, cut
from vlbench.compression.depth import key_of, refusal
from vlbench.compression.masks import apply_masks
from vlbench.compression.state import Compression
from vlbench.compression.width import streams
from vlbench.model import Model
from vlbench.plugins.table import table
from vlbench.structure import Structure
from vlbench.tensors.locate import locate

MINI = Path(__file__).parents[1] / "registry" / "mini"
WAYS = ("cut", "heads", "kept_scale", "masked", "finetuned", "depth", "width")


def names() -> list[str]:
    """Those of the package that have weights."""
    entries = [e for e in table("models").entries.values() if e.facts.get("suite") == "mini" and e.built_in]
    return [e.name for e in entries if (MINI / e.name / "model.safetensors").is_file()]


def opened(name: str) -> Model:
    cls = table("models").get(name).load()
    card = next(c for c in cls.cards if c.name == name)
    model: Model = cls.open(card, locate(card.checkpoint, card.revision, {}))
    return model


def compressed(name: str, way: str) -> tuple[Model, Compression]:
    """The mini model of that name, compressed."""
    torch.manual_seed(len(name))
    return compress(opened(name), way)


def compress(model: Model, way: str) -> tuple[Model, Compression]:
    """cut: some of the units of every site; heads: whole heads (or groups) of every attention that has them;
    depth: the first block that may go of every tower, then as the first; width: two thirds of the dimensions of every
    residual stream that can be narrowed, then as the first;
    kept_scale: as the first, with the softmax scale of the kept width; masked: half of the weights zero; finetuned:
    cut, then moved by an optimiser."""
    state = Compression(pattern="structured")
    if way == "masked":
        for matrix in model.structure().matrices:
            state.masks[matrix] = torch.rand(model.net.get_parameter(matrix).shape) > 0.5
        apply_masks(model.net, state.masks)
        return model, state
    if way == "depth":
        cut_to(model, state, without_first(model.structure()))
    if way == "width":
        by_key = streams(model.structure())
        assert by_key, f"{model.card.name} has no stream that can be narrowed"
        cut_to(model, state, {k: torch.randperm(s.width)[: s.width * 2 // 3].sort().values for k, s in by_key.items()})
    structure = model.structure()
    if way == "heads":
        structure = structure.with_units(lambda s: s.variants[0].unit if s.variants else s.unit)
    sizes = {s.name: 1 + int(torch.randint(s.units, ())) for s in structure.sites}
    keep = {s.name: torch.randperm(s.units)[: sizes[s.name]].sort().values for s in structure.sites}
    cut_to(model, state, keep, structure, kept_scale=way == "kept_scale")
    if way == "finetuned":
        optimiser = torch.optim.AdamW(model.net.parameters(), lr=1e-3)
        for parameter in model.net.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimiser.step()
    return model, state


def without_first(structure: Structure) -> Kept:
    """All blocks of every tower but the first that may be removed."""
    keep: Kept = {}
    for tower in structure.towers:
        for gone in range(len(tower.blocks)):
            rest = [i for i in range(len(tower.blocks)) if i != gone]
            if not refusal(tower, rest):
                keep[key_of(tower)] = torch.tensor(rest)
                break
    return keep


def cut_to(
    model: Model, state: Compression, keep: Kept, structure: Structure | None = None, *, kept_scale: bool = False
) -> None:
    """Cut, and write it down."""
    structure = structure or model.structure()
    state.cuts.append(Cut.of(structure, keep, kept_scale=kept_scale))
    cut(model.net, structure, keep, kept_scale=kept_scale)
