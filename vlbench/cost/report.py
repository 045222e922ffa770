"""`vlbench cost`: parameters, bytes and MACs of architectures without weights or data, or of a checkpoint."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..compression.cut import cut
from ..compression.saved import open_checkpoint
from ..errors import UserError, did_you_mean
from ..images.folder import folder_image, image_of
from ..model import Model
from ..options import PruneOptions
from ..plugins.entry import Entry
from ..plugins.table import table
from ..plugins.workspace import named_roots
from ..pruning.allocation import uniform
from ..tensors.locate import locate
from .architecture import with_blank
from .counts import stated_macs
from .sample import stated

KEYS = ("model", "task", "sparsity", "checkpoint")


@dataclass(frozen=True)
class Cost:
    """Of one model for one capability. sparsity: realised fraction of the prunable set that is cut away. bytes: of the
    saved weights, which are fp32. macs: of the stated sample, 1 MAC = 2 FLOPs."""

    model: str
    capability: str
    sparsity: float
    parameters: int
    prunable: int
    bytes: int
    macs: int
    sample: str


def costs(words: Mapping[str, str]) -> tuple[list[Cost], dict[str, str]]:
    """What `vlbench cost` was asked for, and for each model that cannot be counted why. Raises UserError for wrong
    words, and where a model was asked for by name and cannot be counted."""
    wrong = [key for key in words if key not in KEYS]
    if wrong:
        raise UserError(f"{wrong[0]}= is not known here. {did_you_mean(wrong[0], KEYS)}")
    targets = [_fraction(text) for text in words["sparsity"].split(",")] if "sparsity" in words else []
    capability = str(table("tasks").get(words["task"]).facts["capability"]) if "task" in words else ""
    listed: list[Cost] = []
    skipped: dict[str, str] = {}
    models = _models(words.get("model", ""), capability)
    weights = _checkpoint(words["checkpoint"], models) if "checkpoint" in words else None
    for entry in models:
        try:
            names = [capability] if capability else entry.facts["capabilities"]
            counted = [_costs(entry, names, target, weights) for target in (0.0, *targets)]
            listed += [cost for of_capability in zip(*counted, strict=True) for cost in of_capability]
        except UserError as error:
            if "model" in words:
                raise
            skipped[entry.name] = str(error)
    return listed, skipped


def _fraction(text: str) -> float:
    try:
        options = PruneOptions.model_validate({"sparsity": text})
    except ValueError:
        options = None
    if options is None or options.n_m:
        raise UserError(
            f"sparsity={text} should be a fraction like 0.5, which is cut away: zeros change no number here."
        )
    return options.fraction


def _models(names: str, capability: str) -> list[Entry]:
    """Those named, or all of suite=full that have the capability."""
    if names:
        entries = [table("models").get(name) for name in names.split(",")]
        for entry in entries:
            if capability and capability not in entry.facts["capabilities"]:
                raise UserError(f"model={entry.name} cannot {capability}.")
        return entries
    every = [e for e in table("models").entries.values() if e.facts.get("suite", "full") == "full"]
    return [e for e in every if not capability or capability in e.facts["capabilities"]]


def _checkpoint(checkpoint: str, models: list[Entry]) -> Path:
    """Where it lies. Raises UserError where it is nowhere, and for several models: it is of one."""
    if len(models) != 1:
        raise UserError("checkpoint= is of one model: name it, as in model=deit-small.")
    return locate(checkpoint, models[0].facts.get("revision", "main"), named_roots())


def _with_weights(entry: Entry, weights: Path, work: Callable[[Model], list[Cost]]) -> list[Cost]:
    """work(the model of a checkpoint), at the size that its folder says, as a run would open it."""
    family = entry.load()
    card = next(c for c in family.cards if c.name == entry.name)
    image = folder_image(image_of(entry.facts["image"]), weights)
    return work(open_checkpoint(family, replace(card, image=image), weights)[0])


def _costs(entry: Entry, capabilities: Sequence[str], target: float, weights: Path | None = None) -> list[Cost]:
    """Of each capability, at one width, of one and the same model."""

    def count(model: Model) -> list[Cost]:
        size = model.structure().size
        if target:
            cut_uniformly(model, target)
        facts: dict[str, Any] = {
            "sparsity": 1 - model.structure().size / size,
            "parameters": sum(p.numel() for p in model.net.parameters()),
            "prunable": size,
            "bytes": _bytes(model),
        }
        return [
            Cost(entry.name, name, macs=stated_macs(model, name), sample=stated(name).trained, **facts)
            for name in capabilities
        ]

    return with_blank(entry, count) if weights is None else _with_weights(entry, weights, count)


def cut_uniformly(model: Model, fraction: float) -> None:
    """What structured pruning with a uniform allocation leaves: which units makes no difference to what it costs."""
    structure = model.structure()
    keep = uniform({site.name: torch.zeros(site.units) for site in structure.sites}, fraction)
    cut(model.net, structure, keep)


def _bytes(model: Model) -> int:
    """Of the tensors that are saved: each storage once, buffers too."""
    uses: dict[int, int] = {}
    for value in model.net.state_dict(keep_vars=True).values():
        uses[id(value)] = value.numel() * value.element_size()
    return sum(uses.values())


def print_costs(words: Mapping[str, str], *, json: bool) -> None:
    listed, skipped = costs(words)
    if json:
        print(jsonlib.dumps({"costs": [asdict(cost) for cost in listed], "skipped": skipped}, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    columns = Table("model", "capability", box=None, pad_edge=False, header_style="bold")
    for name in ("sparsity", "params", "prunable", "MB", "GMACs"):
        columns.add_column(name, justify="right")
    for cost in listed:
        columns.add_row(*_row(cost))
    console = Console()
    console.print(columns)
    for capability, sample in dict.fromkeys((cost.capability, cost.sample) for cost in listed):
        console.print(f"{capability}: {sample}", highlight=False, style="dim", soft_wrap=True)
    for name, why in skipped.items():
        console.print(f"{name} is left out: {why}", highlight=False, markup=False, style="dim")


def _row(cost: Cost) -> tuple[Any, ...]:
    return (
        cost.model,
        cost.capability,
        f"{cost.sparsity:.1%}" if cost.sparsity else "",
        f"{cost.parameters / 1e6:.2f}M",
        f"{cost.prunable / 1e6:.2f}M",
        f"{cost.bytes / 1e6:.1f}",
        f"{cost.macs / 1e9:.4g}",
    )
