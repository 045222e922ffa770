"""Verbs of finished runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from ..machine.device import ask_for
from ..records.runs import run_of
from .common import RUNS, Device, Json, Runs


def time_(
    names: Annotated[list[str], typer.Argument(metavar="RUN", help="finished runs: their names or folders")],
    runs: Runs = RUNS,
    device: Device = "",
    precision: Annotated[str, typer.Option("--precision", help="fp32 or bf16")] = "fp32",
    compiled: Annotated[bool, typer.Option("--compile", help="compile the model's blocks with torch.compile")] = False,
    accelerate: Annotated[
        str, typer.Option("--accelerate", help="semi_structured: verify 2:4 masks and time their linears")
    ] = "",
    runtime: Annotated[
        str, typer.Option("--runtime", help="where it is served: onnx,openvino,torch (`vlbench list runtimes`)")
    ] = "",
    json: Json = False,
) -> None:
    """Latency, throughput and memory of finished runs on this device: vlbench time RUN."""
    from ..cost.measured import time_runs
    from ..cost.timing import How
    from ..machine.device import computing_device, refuse_precision
    from ..machine.ui import Screen

    if precision not in ("fp32", "bf16"):
        raise UserError(f"--precision {precision} should be fp32 or bf16.")
    ask_for(device)
    refuse_precision(precision)
    how = How(computing_device(), "bf16" if precision == "bf16" else "fp32", compiled)
    if runtime and accelerate:
        raise UserError("--runtime and --accelerate measure different things: give one of them.")
    with Screen(quiet=json) as screen:
        if runtime:
            from ..serving.measured import time_served

            time_served([run_of(name, runs) for name in names], runtime.split(","), how, screen, json=json)
            return
        time_runs([run_of(name, runs) for name in names], how, screen, json=json, accelerate=accelerate)


def page(
    names: Annotated[list[str], typer.Argument(metavar="RUN", help="finished runs: their names or folders")],
    runs: Runs = RUNS,
) -> None:
    """A page to look into a finished run: its configuration, curves and samples, in RUN/page.html."""
    from ..pages.run import write_page

    for name in names:
        file, why = write_page(run_of(name, runs))
        if why:
            print(f"no samples: {why}", file=sys.stderr)
        print(f"wrote {file}")


def export(
    name: Annotated[str, typer.Argument(metavar="RUN", help="the run: its name, the beginning of it, or its folder")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="the folder to write, which must not exist")],
    runs: Runs = RUNS,
    to: Annotated[
        str, typer.Option("--to", help="a runtime (`vlbench list runtimes`): written, reopened there and compared")
    ] = "",
) -> None:
    """A compressed model with a loader that needs no vlbench: vlbench export RUN DIR, or for a runtime: --to onnx."""
    from ..compression.export import export as write

    if to:
        from ..serving.export import export_to

        for line in export_to(run_of(name, runs), folder, to):
            print(line)
        return
    for line in write(name, folder, runs):
        print(line)


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="what `vlbench export --to hub-folder` wrote")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="the repository on the hub")],
    public: Annotated[bool, typer.Option("--public", help="for everybody to see; a new one is private else")] = False,
) -> None:
    """Upload a compressed model with its card to the hub: vlbench push DIR OWNER/NAME."""
    from ..serving.push import push as upload

    print(f"wrote {upload(folder, repository, public=public)}")
