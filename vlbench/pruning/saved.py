"""A compressed model on disk: the cuts {site: kept units} + the original configuration + safetensors.

Reload = build the original architecture, adopt, cut, load strictly: bit-exact, and no training code is needed.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import UserError
from ..job import Compression
from ..model import Card, Model
from ..plugins import table
from ..storage import read_json, replace_folder, write_json
from ..weights import file_digest, load_into, read_weights
from .cut import Cut

FORMAT = 1
MANIFEST = "vlbench.json"


def save_model(folder: Path, model: Model, state: Compression) -> None:
    """Write the model folder under a temporary name, then rename it into place."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    model.save_assets(temporary)
    write_json(temporary / "config.json", model.config)
    save_file(distinct_tensors(model.net), temporary / "model.safetensors")
    if state.masks:
        save_file({k: _pack(v) for k, v in state.masks.items()}, temporary / "masks.bin")
    manifest = {
        "format": FORMAT,
        "model": model.card.name,
        "cuts": [made.sites for made in state.cuts],
        "pattern": state.pattern,
        "trained": state.trained,
        "steps": state.steps,
        "samples_seen": state.samples_seen,
        "log": state.log,
        "sha256": file_digest(temporary / "model.safetensors"),
    }
    write_json(temporary / MANIFEST, manifest)
    replace_folder(temporary, folder)


def is_saved(folder: Path) -> bool:
    """Whether a whole model was saved there."""
    return (folder / MANIFEST).is_file()


def load_model(folder: Path) -> tuple[Model, Compression]:
    """The model of a saved folder, and what was done to it. Raises UserError where the folder is damaged."""
    manifest = _manifest(folder)
    cls = table("models").get(manifest["model"]).load()
    card: Card = next(c for c in cls.cards if c.name == manifest["model"])
    model: Model = cls.build(card, read_json(folder / "config.json"), folder)
    state = Compression(
        cuts=[Cut({name: (unit, kept) for name, (unit, kept) in sites.items()}) for sites in manifest["cuts"]],
        pattern=manifest["pattern"],
        trained=manifest["trained"],
        steps=manifest["steps"],
        samples_seen=manifest["samples_seen"],
        log=manifest["log"],
    )
    for made in state.cuts:
        made.repeat(model.net, model.structure())
    load_into(model.net, read_weights(folder))
    if (folder / "masks.bin").is_file():
        shapes = {name: model.net.get_parameter(name).shape for name in model.structure().matrices}
        state.masks = {k: _unpack(v, shapes[k]) for k, v in load_file(folder / "masks.bin").items()}
    return model, state


def _manifest(folder: Path) -> Any:
    if not is_saved(folder):
        raise UserError(f"{folder} holds no compressed model: {MANIFEST} is missing.")
    manifest = read_json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise UserError(f"{folder} is of format {manifest.get('format')}, this vlbench reads {FORMAT}: update vlbench.")
    if file_digest(folder / "model.safetensors") != manifest["sha256"]:
        raise UserError(
            f"{folder / 'model.safetensors'} is damaged (its digest differs): delete the folder and run again."
        )
    return manifest


def distinct_tensors(net: nn.Module) -> dict[str, Tensor]:
    """The state dict with every storage once: safetensors refuses tied weights, load_into ties them again."""
    seen: dict[int, str] = {}
    kept: dict[str, Tensor] = {}
    for key, value in net.state_dict(keep_vars=True).items():
        if value.numel() == 0 or seen.setdefault(value.data_ptr(), key) == key:
            kept[key] = value.detach().cpu().contiguous()
    return kept


def _pack(mask: Tensor) -> Tensor:
    """Booleans -> one bit each (7 bytes in 8 saved; a 7B model's masks are 0.8 GB instead of 6.5)."""
    return torch.from_numpy(np.packbits(mask.flatten().numpy()))


def _unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    bits = np.unpackbits(packed.numpy(), count=shape.numel())
    return torch.from_numpy(bits.astype(bool)).view(shape)
