"""`vlbench export RUN DIR`: a compressed model in a folder of its own, with a loader that needs no vlbench.

The weights are the run's, byte for byte, so that vlbench.load gives the same bits. What a library's classes need to
compute the same (head counts and widths, factors of the queries) stands beside them in stock.json, and load.py obeys.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..disk.storage import new_folder, read_json, write_json, write_text
from ..errors import UserError
from ..model import Model
from ..nn.stock import LOADER
from ..records.runs import run_of
from .depth import original_blocks
from .saved import copy_saved, is_saved, load_model, untouched
from .state import Compression

STOCK = "stock.json"
PREPROCESSING = "preprocessing.json"  # of images, as vlbench/images/spec.py says it


def export(run: str, folder: Path, runs: Path) -> list[str]:
    """Write the compressed model of a run to `folder`, whole or not at all; returns sentences that say what was done.
    Raises UserError where there is no such model, it is damaged, or `folder` holds something."""
    source = find_model(run, runs)
    refuse_taken(folder)
    model, state = load_model(source)
    with new_folder(folder.absolute(), among_others=True) as temporary:
        stock = write_stock(source, model, state, temporary)
    names = sorted(p.name for p in folder.iterdir())
    lines = [f"wrote {folder}: {', '.join(names)}"]
    return lines if stock else [*lines, f"no {LOADER}: {why_no_library(model, state)}; vlbench.load opens the folder."]


def why_no_library(model: Model, state: Compression) -> str:
    """In words that end a sentence: why no library opens what is saved. "" where one does."""
    if state.adapters:
        return "adapters stand beside its weights, which libraries do not read"
    stock = model.stock()
    if stock is None:
        return f"{model.card.name} has no Model.stock() that says how its library opens it"
    sites = model.structure().sites if stock.needs_heads else ()
    gone = [site.name for site in sites if site.kind == "attention" and site.emptied]
    return f"nothing is left of {gone[0]}, which the library's own attention does not compute" if gone else ""


def _dropped(source: Path, model: Model, state: Compression) -> dict[str, Any]:
    """{"dropped": {path of the layers: numbers, in the configuration's model, of those that are gone}}, where whole
    layers are."""
    made = [cut.sites for cut in state.cuts]
    if not any(name.endswith(".blocks") for sites in made for name in sites):
        return {}
    original = untouched(source, model).structure()
    left = original_blocks(made, original)
    dropped = {
        tower.blocks[0].path.rpartition(".")[0]: [i for i in range(len(tower.blocks)) if i not in left[tower.name]]
        for tower in original.towers
    }
    return {"dropped": {path: gone for path, gone in dropped.items() if gone}}


def write_stock(source: Path, model: Model, state: Compression, folder: Path) -> bool:
    """Copy the saved model, and put beside it what its library opens it with; whether there is such a thing. model and
    state: those in `source`."""
    copy_saved(source, folder)
    write_json(folder / PREPROCESSING, asdict(model.card.image))
    stock = model.stock()
    if stock is None or why_no_library(model, state):
        return False
    write_json(folder / STOCK, {**stock.facts, **_dropped(source, model, state)})
    for name, text in stock.files.items():
        write_text(folder / name, text)
    return True


def find_model(name: str, runs: Path) -> Path:
    """The folder of a compressed model: of a run in `runs` by its name or the beginning of it, of a run's folder, or
    itself. Raises UserError where it is none, or the beginning fits several."""
    for folder in (Path(name), Path(name) / "model"):
        if is_saved(folder):
            return folder
    run = run_of(name, runs)
    if is_saved(run / "model"):
        return run / "model"
    if [link[0] for link in read_json(run / "cell.json")["identity"]["chain"]] == ["dense"]:
        raise UserError(f"{run.name} is of the dense model, which nothing was done to: export a run of a method.")
    raise UserError(f"{run.name} has no compressed model yet: run it to its end first.")


def refuse_taken(folder: Path) -> None:
    """Raise UserError where something is there already."""
    if folder.is_dir() and not any(os.scandir(folder)):
        return
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{folder} holds something already: give a folder that does not exist.")
