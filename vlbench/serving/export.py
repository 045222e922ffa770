"""`vlbench export RUN DIR --to RUNTIME`: written, reopened there, compared, and only then left on disk."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..cell.again import dense_cell
from ..compression.export import refuse_taken
from ..compression.saved import load_model
from ..compression.state import Compression
from ..cost.measured import open_run
from ..disk.digests import file_digest
from ..disk.storage import new_folder, write_json
from ..errors import RunFailed, UserError
from ..machine.device import computing_device, product
from ..plugins.table import table
from ..records.record import Record, read_local
from ..runtime import Runtime, Served
from .proof import proved, proved_by_itself, wanted

PROOF = "proof.json"
SCHEMA_VERSION = 1


def runtime_named(name: str) -> Runtime:
    """The runtime of that name. Raises UserError where there is none, or where its packages are not installed."""
    entry = table("runtimes").get(name)
    packages, extra = entry.facts.get("packages", ()), entry.facts.get("extra", "")
    if missing := [package for package in packages if not installed(package)]:
        what = f'"vlbench[{extra}]"' if extra else " ".join(missing)
        raise UserError(f"--to {name} needs {', '.join(missing)}, which is not installed: pip install {what}")
    runtime: Runtime = entry.load()()
    return runtime


def installed(package: str) -> bool:
    """Whether it can be imported; nothing is."""
    return importlib.util.find_spec(package) is not None


def finished(folder: Path) -> Record:
    """The record of a run's folder. Raises UserError where it is no finished run."""
    if not (folder / "result.json").is_file():
        raise UserError(
            f"{folder} is no finished run (`vlbench list runs` shows them), and the proof needs the samples of one."
        )
    return read_local(folder)


def opened(folder: Path, record: Record) -> Served:
    """The run's model in float32 on the CPU, without parts yet."""
    source = folder / "model"
    if source.exists():
        model, state = load_model(source)
    else:
        model, state = open_run(folder, record), Compression()
    model.net.float().eval()
    return Served(model, state, (), source if source.exists() else None, record)


def export_to(folder: Path, target: Path, name: str) -> list[str]:
    """Write the run's model for the runtime, with its proof, whole or not at all; returns what to tell the user.
    Raises UserError for what cannot be asked, RunFailed where the runtime computes something else."""
    runtime, record = runtime_named(name), finished(folder)
    refuse_taken(target)
    served = opened(folder, record)
    refuse(runtime, served)
    cell = dense_cell(folder, record)
    request = wanted(served.model, cell) if runtime.staged else None
    served = replace(served, parts=request.parts if request else ())
    with new_folder(target.absolute(), among_others=True) as temporary:
        notes = [*written(runtime, served, temporary), *_masked(served)]
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        if request:
            serve = runtime.open(served, temporary, torch.get_num_threads())
            compared = proved(runtime, served.model, cell, request, serve)
        else:
            compared = proved_by_itself(runtime, served, temporary, cell)
        proof = {
            "schema_version": SCHEMA_VERSION, "run": record.cell, "runtime": name, "version": runtime.version(),
            "torch": torch.__version__, "device": product(computing_device()), "tolerance": runtime.tolerance,
            **compared,
            "files": {p.relative_to(temporary).as_posix(): file_digest(p) for p in files},
        }  # fmt: skip
        write_json(temporary / PROOF, proof)
    names = sorted(p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file())
    return [f"wrote {target}: {', '.join(names)}", *notes, *_lines(proof, runtime)]


def refuse(runtime: Runtime, served: Served) -> None:
    """Raise UserError where the runtime cannot hold the model."""
    if why := runtime.refusal(served):
        raise UserError(f"{runtime.title} cannot hold this {served.model.card.name}: {why}.")


def written(runtime: Runtime, served: Served, folder: Path) -> list[str]:
    """What runtime.write says. Raises RunFailed naming the runtime where it cannot write the model: an operator that it
    lacks is found out by its own exporter, whose sentence stands at the end."""
    try:
        return list(runtime.write(served, folder))
    except (UserError, RunFailed, OSError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        where = f"{served.model.card.name} ({', '.join(p.stage.name for p in served.parts)})"
        raise RunFailed(f"{runtime.title} cannot write {where}: {type(error).__name__}: {text[:500]}") from error


def _masked(served: Served) -> list[str]:
    if not served.state.masks:
        return []
    return ["the weights of this run are masked and not cut: zeros are stored, and the file is as large as the dense."]


def _lines(proof: dict[str, Any], runtime: Runtime) -> list[str]:
    few = "" if proof["samples"] >= 64 else ", all that the run has"
    alike = f"proof: {proof['equal']} of {proof['samples']} samples{few} predicted alike by {proof['version']}"
    if not proof["stages"]:
        return [alike]
    stages = ", ".join(f"{name} {difference['relative']:.2g}" for name, difference in proof["stages"].items())
    return [f"{alike}; largest difference as a part of the largest output: {stages}"]
