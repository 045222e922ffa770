"""Verbs of plug-ins' authors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import RunFailed, UserError
from ..machine.device import ask_for, computing_device
from .common import RUNS, Device, Runs, Words, resumable

if TYPE_CHECKING:
    from ..machine.ui import Screen


def new(
    kind: Annotated[str, typer.Argument(help="method")],
    name: Annotated[str, typer.Argument(help="the name, a Python identifier")],
) -> None:
    """Start a plug-in: vlbench new method mine."""
    from ..plugins.scaffold import create

    for line in create(kind, name):
        print(line)


def check(words: Words, runs: Runs = RUNS, device: Device = "") -> None:
    """Test a method's contract, or a model's published numbers: vlbench check method=mine, or model=NAME limit=1000.

    A method is tried on a tiny classifier; task=NAME tries it on that task's mini model and world."""
    from ..cell.words import parse
    from ..machine.ui import Screen

    if device:
        ask_for(device)
        computing_device()
    given = parse(words)
    if "model" not in given and ("method" not in given or set(given) - {"method", "task"}):
        raise UserError("vlbench check takes method=NAME with task=NAME or none, or model=NAME with limit=N.")
    if given.get("task") == "":
        raise UserError("task= is empty: give the name of a task, or leave it out.")
    with resumable(), Screen() as screen:
        if "model" in given:
            return _check_model(given, runs, screen)
        from ..checks.contract import check_method

        for line in check_method(given["method"], screen, given.get("task", "")):
            print(line, flush=True)
    print(f"{given['method']} keeps the contract of methods.")
    return None


def _check_model(given: dict[str, str], runs: Path, screen: Screen) -> None:
    from ..checks.parity import check_model

    good = True
    for line, fine in check_model(given, runs, screen):
        print(line, flush=True)
        good = good and fine
    if not good:
        raise RunFailed(f"{given['model']} does not score what its card says was published.")
