"""What the verbs have in common: their words and flags, and how they end early."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ..errors import UserError
from ..machine.device import HELP

WORDS = "key=value words, like task=vqav2 method=upop sparsity=0.5"
Words = Annotated[list[str], typer.Argument(metavar="KEY=VALUE", help=WORDS)]
Runs = Annotated[Path, typer.Option("--runs", help="the folder of runs")]
Json = Annotated[bool, typer.Option("--json", help="print JSON for programs, and nothing else")]
Device = Annotated[str, typer.Option("--device", help=HELP)]
RUNS = Path("runs")


@contextmanager
def resumable() -> Iterator[None]:
    """Ctrl-C and SIGTERM leave a cell that the same command resumes: say so (typer would end without a word)."""
    from ..machine.stopping import STOPPED, Stopped, stoppable

    try:
        with stoppable(signal.SIGTERM):
            yield
    except Stopped:
        stop("stopped by SIGTERM; the same command goes on from here.", STOPPED)
    except KeyboardInterrupt:
        stop("interrupted; the same command goes on from here.", 130)


def stop(message: object, code: int) -> NoReturn:
    print(f"vlbench: {message}", file=sys.stderr)
    raise SystemExit(code)


def names_and_words(arguments: list[str], known: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """Names, and key=value words of which only `known` ones make sense here."""
    from ..cell.words import parse
    from ..errors import did_you_mean

    words = parse([a for a in arguments if "=" in a])
    if wrong := [key for key in words if key not in known]:
        raise UserError(f"{wrong[0]}= is not known here. {did_you_mean(wrong[0], known)}")
    return [a for a in arguments if "=" not in a], words


def cells_of(words: list[str], file: Path | None, *, quiet: bool) -> list[str]:
    """The cells of a sweep."""
    from ..machine.ui import Screen
    from ..sweep.planning import plan as planning
    from ..sweep.sweepfile import lines_of

    with resumable(), Screen(quiet=quiet) as screen:
        return [one.cell for one in planning(lines_of(words, file), screen.building, screen.digesting)]
