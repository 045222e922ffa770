"""The verbs. torch is imported only by a verb that needs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from .errors import RunFailed, UserError

if TYPE_CHECKING:
    from .record import Record
    from .ui import Screen

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Which pruning method keeps the most quality of a vision-language model for the least cost?\n\n"
    "Words key=value describe the cell (vlbench run method=upop task=vqav2); --flags change only the command.",
)
Words = Annotated[list[str], typer.Argument(help="key=value words, like task=vqav2 method=upop sparsity=0.5")]
Runs = Annotated[Path, typer.Option("--runs", help="the folder of runs")]
Json = Annotated[bool, typer.Option("--json", help="print JSON for programs, and nothing else")]
RUNS = Path("runs")


def main() -> None:
    """Entry point. Exit codes: 0 done, 2 the command's words are wrong, 1 something failed."""
    try:
        app()
    except UserError as error:
        _stop(error, error.exit_code)
    except RunFailed as error:
        _stop(error, error.exit_code)
    except KeyboardInterrupt:
        _stop("interrupted; the same command goes on from here", 130)


def _stop(message: object, code: int) -> NoReturn:
    print(f"vlbench: {message}", file=sys.stderr)
    raise SystemExit(code)


@app.command()
def run(
    words: Words,
    runs: Runs = RUNS,
    plan: Annotated[bool, typer.Option("--plan", help="print the resolved cell and what is done; run nothing")] = False,
    json: Json = False,
    checkpoint_every: Annotated[float, typer.Option(help="seconds between two saved training states")] = 15.0,
) -> None:
    """Run one cell and print its table: vlbench run method=upop task=vqav2."""
    from .spec import parse, resolve
    from .ui import Screen

    spec = resolve(parse(words))
    with Screen(quiet=json) as screen:
        if plan:
            from .plan import print_plan

            return print_plan(spec, runs, json=json)
        from .run import Runner, Uploaded, refuse_unwritable

        refuse_unwritable(runs)
        try:
            record = Runner(runs, screen, checkpoint_seconds=checkpoint_every).run(parse(words))
        except Uploaded as told:
            print(f"{told.file} is ready for the server; `vlbench score` enters what it returns.")
            return None
    _finish(record, runs, json=json)
    return None


def _finish(record: Record, runs: Path, *, json: bool) -> None:
    from .board import print_board

    if json:
        print(record.model_dump_json(indent=1))
    else:
        print_board(record, runs)
    if not record.complete:
        raise RunFailed(
            f"the cell is incomplete: {', '.join(record.flags)}. {runs / record.cell / 'predictions.jsonl'} names "
            "them; mend the data, delete that folder and run again."
        )


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="models, tasks, methods or runs; all when left out")] = "",
    check: Annotated[bool, typer.Option("--check", help="import every plug-in and say which cannot be used")] = False,
    runs: Runs = RUNS,
    json: Json = False,
) -> None:
    """What there is: models, tasks, methods, runs."""
    from .catalogue import check_all, print_catalogue

    if check:
        broken = check_all()
        if broken:
            raise RunFailed("\n".join(broken))
    print_catalogue(what, runs, json=json)


@app.command("help")
def help_(words: Words) -> None:
    """Options, defaults, ranges, recipes and paper of a plug-in: vlbench help method=upop."""
    from .catalogue import print_help
    from .spec import parse

    print_help(parse(words))


@app.command()
def leaderboard(
    check: Annotated[bool, typer.Option("--check", help="compare bytes and write nothing; exit 1 on a difference")] = False,
    folder: Annotated[Path, typer.Option(help="the leaderboards folder")] = Path("leaderboards"),
) -> None:
    """Regenerate leaderboards/<suite>/<task>.csv and .md from leaderboards/results."""
    from .leaderboard import regenerate

    if not (folder / "results").is_dir():
        raise UserError(f"{folder / 'results'} does not exist: run this in the checkout, or give --folder.")
    if check:
        differences = regenerate.check(folder / "results", folder)
        if differences:
            raise RunFailed("\n".join(["leaderboards differ from their results:", *differences]))
        print("leaderboards are what their results say.")
    else:
        for path in regenerate.write(folder / "results", folder):
            print(f"wrote {path}")


@app.command()
def submit(
    name: Annotated[str, typer.Argument(metavar="RUN", help="a run's name or folder")],
    runs: Runs = RUNS,
    folder: Annotated[Path, typer.Option(help="the leaderboards folder")] = Path("leaderboards"),
) -> None:
    """Verify a finished run and copy its record to leaderboards/results."""
    from .leaderboard.regenerate import submit as submit_run

    place = Path(name) if (Path(name) / "result.json").is_file() else runs / name
    print(f"wrote {submit_run(place, folder / 'results')}; `vlbench leaderboard` makes the tables.")


@app.command()
def score(
    name: Annotated[str, typer.Argument(metavar="RUN", help="the run whose upload file was sent")],
    file: Annotated[Path, typer.Option("--file", help="the server's JSON: {metric: value}")],
    runs: Runs = RUNS,
) -> None:
    """Enter what an evaluation server returned for a split without labels."""
    from .server import enter_score

    print(f"wrote {enter_score(runs / name, file)}")


@app.command()
def new(
    kind: Annotated[str, typer.Argument(help="method")],
    name: Annotated[str, typer.Argument(help="the name, a Python identifier")],
) -> None:
    """Start a plug-in: vlbench new method mine."""
    from .scaffold import create

    for line in create(kind, name):
        print(line)


@app.command()
def check(words: Words) -> None:
    """The contract test of a plug-in: vlbench check method=mine."""
    from .contract import check_method
    from .spec import parse

    given = parse(words)
    if set(given) != {"method"}:
        raise UserError("vlbench check takes method=NAME.")
    with _screen() as screen:
        for line in check_method(given["method"], screen):
            print(line)


def _screen() -> Screen:
    from .ui import Screen

    return Screen()


if __name__ == "__main__":
    main()
