"""Verbs that tell what there is: plug-ins, sizes, data."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import RunFailed, UserError
from .common import RUNS, Device, Json, Runs, resumable


def list_(
    what: Annotated[str, typer.Argument(help="models, tasks, methods or runs; all when left out")] = "",
    check: Annotated[
        bool, typer.Option("--check", help="import every plug-in; exit 1 where one cannot be used")
    ] = False,
    runs: Runs = RUNS,
    json: Json = False,
) -> None:
    """What there is: models, tasks, methods, runs."""
    from .catalogue import check_all, print_catalogue

    print_catalogue(what, runs, json=json)
    if check and (broken := check_all()):
        raise RunFailed("\n".join(broken))


def help_(
    words: Annotated[list[str], typer.Argument(metavar="KEY=NAME", help="method=, task= or model=NAME")],
) -> None:
    """Options, defaults, ranges, recipes and paper of a plug-in: vlbench help method=upop."""
    from .catalogue import print_help

    print_help(words)


def cost(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="model=NAME,NAME task=NAME sparsity=0.5,0.75; all may be left out"),
    ] = None,
    json: Json = False,
) -> None:
    """Parameters, bytes and MACs of architectures, or of a checkpoint=: vlbench cost model=deit-small."""
    from ..cell.words import parse
    from ..cost.report import print_costs

    given = parse(words or [])
    if empty := [key for key, value in given.items() if not value]:
        raise UserError(f"{empty[0]}= is empty: give a value, or leave it out for all.")
    print_costs(given, json=json)


def doctor(runs: Runs = RUNS, device: Device = "", json: Json = False) -> None:
    """What this machine has: device, versions, extras, folders, and what is missing for which task."""
    from ..checks.doctor import print_report
    from ..machine.device import ask_for

    ask_for(device)
    print_report(runs, json=json)


def where(json: Json = False) -> None:
    """The folders that tasks read, as vlbench.toml and VLBENCH_DATA name them."""
    from ..checks.data import print_where

    print_where(json=json)


def prepare(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="task=NAME,NAME split=NAME,NAME; split= may be left out"),
    ] = None,
) -> None:
    """Unpack images that lie inside a benchmark's table, once: vlbench data prepare task=mmbench."""
    from ..cell.words import parse
    from ..checks.prepare import prepare as unpack
    from ..machine.ui import Screen

    with resumable(), Screen(quiet=False) as screen:
        unpack(parse(words or []), screen.say)


def verify_(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="task=NAME,NAME split=NAME,NAME suite=mini; all may be left out"),
    ] = None,
    images: Annotated[bool, typer.Option("--images", help="decode every image, too")] = False,
    json: Json = False,
) -> None:
    """Missing files, annotations that do not parse, samples without their images: vlbench data verify task=vqav2."""
    from ..cell.words import parse
    from ..checks.data import print_roots, verify
    from ..machine.ui import Screen

    with resumable(), Screen(quiet=json) as screen:
        roots = verify(parse(words or []), screen, images=images)
    print_roots(roots, json=json)
    if bad := [root.name for root in roots if not root.intact]:
        raise RunFailed(f"not intact: {', '.join(bad)}.")
