"""The verbs. torch is imported only by a verb that needs it, and every verb imports what it works with when called."""

from __future__ import annotations

import codecs
import errno
import os
import select
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__
from ..errors import RunFailed, UserError
from . import boards, cells, finished, listing, plugins
from .common import stop

# In the order of the help.
VERBS: tuple[Callable[..., Any], ...] = (
    cells.run, cells.sweep, cells.status, cells.reproduce, listing.list_, listing.help_, listing.cost, listing.doctor,
    finished.time_, boards.leaderboard, boards.compare, boards.table_, boards.plot, finished.page, boards.submit,
    boards.score, finished.export, finished.push, boards.import_, plugins.new, plugins.check,
)  # fmt: skip
DATA_VERBS: tuple[Callable[..., Any], ...] = (listing.where, listing.prepare, listing.verify_)

HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    add_completion=True,
    context_settings=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Which pruning method keeps the most quality of a vision-language model for the least cost?\n\n"
    "Words key=value describe the cell (vlbench run method=upop task=vqav2); --flags change only the command.",
)
data_app = typer.Typer(
    no_args_is_help=True, context_settings=HELP, rich_markup_mode=None, help="Where the data are, and are they intact?"
)
app.add_typer(data_app, name="data")
for parent, verbs in ((app, VERBS), (data_app, DATA_VERBS)):
    for verb in verbs:
        parent.command(verb.__name__.rstrip("_"), context_settings=HELP)(verb)  # some are Python's words, too

# Of the machine, not of the program: told in one sentence wherever they come from.
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
# Of a name that was given where a file or folder should be.
NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)
SHOWN = 100  # characters of a name that is no name
# How a terminal without the sign is told.
PLAIN = {"\u00b1": "+/-", "\u00d7": "x", "\u2026": "...", "\u2013": "-", "\u2014": "-", "\u2500": "-"}


def main() -> None:
    """Entry point. Exit codes: 0 done, 2 the command's words are wrong, 1 something failed, 130 and 143
    stopped by Ctrl-C and SIGTERM, to be given again."""
    _print_anything()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when it is imported; it warns of its own API
    _refuse_no_folder()
    _refuse_empty(sys.argv[1:])
    try:
        app()
    except SystemExit as ended:
        raise SystemExit(0 if _reader_left(ended) else ended.code) from None
    except (UserError, RunFailed) as error:
        stop(error, error.exit_code)
    except OSError as error:
        if error.errno in NO_NAME:
            name = str(error.filename or "a name")
            short = name if len(name) <= SHOWN else f"{name[:SHOWN]}..."
            stop(f"{short}: {error.strerror}. Give the name of a file or folder.", 2)
        if error.errno not in CANNOT_WRITE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "Free some space" if full else "Change its permissions"
        stop(f"{where}{error.strerror}. {remedy} or choose another folder, then run the same command again.", 2)


def _print_anything() -> None:
    """A terminal or a pipe of few signs (ASCII, Latin-1) gets what it can show, and no error."""

    def plain(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)
        part = error.object[error.start : error.end]
        return "".join(PLAIN.get(sign, "?") for sign in part), error.end

    codecs.register_error("vlbench", plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # None where it was closed; a test's own
            stream.reconfigure(errors="vlbench")


def _refuse_empty(words: list[str]) -> None:
    """A shell's variable without a value leaves an empty word, which as a path would be the working folder."""
    for before, word in pairwise(["", *words]):
        if word.startswith("--") and word.endswith("="):
            stop(f"{word[:-1]} has no value: give it one, or leave it out.", 2)
        if not word:
            stop(f"the word after {before or 'vlbench'} is empty: give it a value, or leave it out.", 2)


def _refuse_no_folder() -> None:
    """Every verb looks for a workspace from here on upwards, and libraries of torch fail without a folder."""
    try:
        Path.cwd()
    except OSError as error:
        stop(f"the current folder is gone or cannot be read ({error.strerror}): cd to another.", 2)


def _reader_left(ended: SystemExit) -> bool:
    """Whether the program ends because who reads its output has enough of it, as `| head` has after ten lines. (typer
    and rich end with 1 at the first line that nobody takes; rich has sent the rest to nowhere by then.)"""
    if ended.code != 1 or not isinstance(ended.__context__, BrokenPipeError):
        return False
    try:
        handle, nowhere = sys.stdout.fileno(), os.open(os.devnull, os.O_WRONLY)
        poll = select.poll()
        poll.register(handle, 0)  # errors alone
        left = bool(poll.poll(0)) or os.path.sameopenfile(handle, nowhere)
        os.dup2(nowhere, handle)  # what is left is flushed at the end without a complaint
    except (AttributeError, OSError, ValueError):  # no poll here, or output that is no file (of a test)
        return False
    return left


def _version(wanted: bool) -> None:
    if wanted:
        print(f"vlbench {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
    workspace: Annotated[
        list[Path] | None, typer.Option("--workspace", help="a folder whose vlbench.toml and plug-ins you trust")
    ] = None,
) -> None:
    """--version and --workspace, and nothing else before the verb."""
    from ..plugins.workspace import allow

    for folder in workspace or []:
        allow(folder)
