"""A compressed model on disk: the cuts {site: kept units} + the original configuration + safetensors.

Reload = build the original architecture, adopt, cut, load strictly: bit-exact, and no training code is needed.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..disk.digests import MANIFEST as MANIFEST
from ..disk.digests import file_digest
from ..disk.paths import inside
from ..disk.storage import new_folder, read_json, read_sealed, standing, write_json, write_sealed
from ..errors import UserError
from ..images.folder import differences, image_of
from ..model import Card, Model, read_config
from ..nn.adapted import adapter_keys, attach_all
from ..plugins.table import table
from ..tensors.limits import bounded
from ..tensors.reading import declared_elements, fill, read_weights, save_tensors
from .changes import give_bias
from .cut import Cut
from .masks import pack, unpack
from .state import Compression

# 1: without adapters, 2: without what acts at run time, 3: without biases that were added. The lowest that holds the
# model is written, so that an older vlbench reads it.
FORMAT = 4
WEIGHTS = "model.safetensors"
# Safetensors too, under names that no loader of weights takes for weights.
MASKS, ADAPTERS = "masks.bin", "adapters.bin"


def save_model(folder: Path, model: Model, state: Compression) -> None:
    """Write the model folder whole or not at all. Raises UserError where there is no room."""
    with new_folder(folder) as temporary:
        model.save_assets(temporary)
        write_json(temporary / "config.json", model.config)
        tensors = distinct_tensors(model.net)
        apart = {name: tensors.pop(name) for path in state.adapters for name in adapter_keys(path)}
        save_tensors(temporary / WEIGHTS, tensors)
        if apart:
            save_tensors(temporary / ADAPTERS, apart)
        if state.masks:
            save_tensors(temporary / MASKS, {k: pack(v) for k, v in state.masks.items()})
        manifest = {
            "format": 4 if state.biases else 3 if state.at_run_time else 2 if apart else 1,
            "model": model.card.name,
            "cuts": [made.sites for made in state.cuts],
            # Numbers of the cuts that left attention with the scale of its kept width.
            "kept_scale": [number for number, made in enumerate(state.cuts) if made.kept_scale],
            **({"adapters": state.adapters} if apart else {}),
            **({"at_run_time": state.at_run_time} if state.at_run_time else {}),
            **({"biases": state.biases} if state.biases else {}),
            **_own_image(model.card),
            "pattern": state.pattern,
            "trained": state.trained,
            "steps": state.steps,
            "samples_seen": state.samples_seen,
            "log": state.log,
            "files": {
                p.relative_to(temporary).as_posix(): file_digest(p) for p in sorted(temporary.rglob("*")) if p.is_file()
            },
        }
        write_sealed(temporary / MANIFEST, manifest)


def _own_image(card: Card) -> dict[str, Any]:
    """Preprocessing that the weights' folder said and the card of that name does not."""
    entry = table("models").entries.get(card.name)
    return {"image": asdict(card.image)} if entry and image_of(entry.facts["image"]) != card.image else {}


def copy_saved(source: Path, target: Path) -> None:
    """Copy a saved model, and nothing else that lies in its folder. Raises UserError where it is damaged."""
    source = standing(source)
    for name in (*_manifest(source)["files"], MANIFEST):
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target / name)


def is_saved(folder: Path) -> bool:
    """Whether a whole model was saved there."""
    return (standing(folder) / MANIFEST).is_file()


def manifest_digest(folder: Path) -> str:
    """sha256 of a saved model's manifest, which has the digests of all its files."""
    return file_digest(standing(folder) / MANIFEST)


def load_model(folder: Path) -> tuple[Model, Compression]:
    """The model of a saved folder, and what was done to it. Raises UserError where the folder is damaged."""
    folder = standing(folder)
    manifest = _manifest(folder)
    cls = table("models").get(manifest["model"]).load()
    card: Card = next(c for c in cls.cards if c.name == manifest["model"])
    if "image" in manifest:
        card = replace(card, image=image_of(manifest["image"]))
    with bounded(folder):
        model: Model = cls.blank(card, read_config(folder), folder)
    state = Compression(
        cuts=[
            Cut({name: (unit, kept) for name, (unit, kept) in sites.items()}, number in manifest.get("kept_scale", []))
            for number, sites in enumerate(manifest["cuts"])
        ],
        pattern=manifest["pattern"],
        trained=manifest["trained"],
        steps=manifest["steps"],
        samples_seen=manifest["samples_seen"],
        log=manifest["log"],
        adapters=manifest.get("adapters", {}),
        at_run_time=manifest.get("at_run_time", {}),
        biases=manifest.get("biases", []),
    )
    for made in state.cuts:
        made.repeat(model.net, model.structure())
    for path in state.biases:
        give_bias(_linear(model, path))
    fill(model.net, read_weights(folder, as_stored=True))
    if state.adapters:
        attach_all(model.net, load_file(folder / ADAPTERS), state.adapters, folder / ADAPTERS)
    if MASKS in manifest["files"]:
        packed = load_file(folder / MASKS)
        for name, bits in packed.items():
            state.masks[name] = unpack(bits, model.net.get_parameter(name).shape)
    for name, declared in state.at_run_time.items():
        table("methods").get(name).load().replay(model, declared)
    return model, state


def _linear(model: Model, path: str) -> nn.Linear:
    layer = model.net.get_submodule(path)
    if not isinstance(layer, nn.Linear):
        raise UserError(f"the manifest gives {path} a bias, and {model.card.name} has no Linear of that name.")
    return layer


def untouched(folder: Path, model: Model) -> Model:
    """The dense model of the saved configuration, with random weights. model: what `load_model` gave."""
    family = table("models").get(model.card.name).load()
    built: Model = family.build(model.card, read_config(standing(folder)), standing(folder))
    return built


def open_checkpoint(cls: type[Model], card: Card, weights: Path) -> tuple[Model, Compression]:
    """The model a cell starts from, and what must be saved again with all that is made of it. weights: what the family
    opens, or the folder of a compressed model, whose cuts and zeros stay. Raises UserError where that is of another
    model."""
    if not is_saved(weights):
        try:
            with bounded(weights, declared_elements(weights)):
                model = cls.open(card, weights)
        except StrictDataclassError as error:  # of transformers' configurations, for values that cannot be
            text = " ".join(str(error).split())[:200]
            raise UserError(f"the configuration of {weights} is of another model, or damaged: {text}.") from error
        if model.card.image != card.image:
            text = differences(model.card.image, card.image)
            raise UserError(
                f"{weights} prove that their images are {text}, and nothing beside them says so: name the card that "
                "they are of, or put the configuration of the checkpoint beside them."
            )
        return model, Compression()
    model, state = load_model(weights)
    if model.card.name != card.name:
        raise UserError(f"{weights} is a compressed {model.card.name}, and this cell's model is {card.name}.")
    model.card = card
    return model, Compression(
        cuts=state.cuts, masks=state.masks, adapters=state.adapters, at_run_time=state.at_run_time, biases=state.biases
    )


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest, every file of which has been found intact."""
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} holds no compressed model: {MANIFEST} is missing.")
    content = read_json(folder / MANIFEST)
    version = content.get("format") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise UserError(f"{folder} is of format {version}, this vlbench reads {FORMAT}: update vlbench.")
    manifest = read_sealed(folder / MANIFEST)
    for name, sha in manifest["files"].items():
        inside(name, folder / MANIFEST, "file")
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing: delete the folder and run again.")
        if file_digest(folder / name) != sha:
            raise UserError(f"{folder / name} is damaged (its digest differs): delete the folder and run again.")
    return manifest


def distinct_tensors(net: nn.Module) -> dict[str, Tensor]:
    """The state dict with every storage once: safetensors refuses tied weights, load_into ties them again."""
    first_key: dict[tuple[int, torch.Size], str] = {}
    kept: dict[str, Tensor] = {}
    for key, value in net.state_dict(keep_vars=True).items():
        if value.numel() == 0 or first_key.setdefault((value.data_ptr(), value.shape), key) == key:
            kept[key] = value.detach().cpu().contiguous()
    return kept
