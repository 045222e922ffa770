"""The verbs. torch is imported only by a verb that needs it."""

from __future__ import annotations

import contextlib
import errno
import json as jsonlib
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from . import __version__
from .errors import RunFailed, UserError

if TYPE_CHECKING:
    from .launch.engines import Engine
    from .launch.sweep import Sweep
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
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Where the data are, and are they intact?")
app.add_typer(data_app, name="data")
Words = Annotated[
    list[str], typer.Argument(metavar="KEY=VALUE", help="key=value words, like task=vqav2 method=upop sparsity=0.5")
]
Runs = Annotated[Path, typer.Option("--runs", help="the folder of runs")]
Json = Annotated[bool, typer.Option("--json", help="print JSON for programs, and nothing else")]
RUNS = Path("runs")


# Of the machine, not of the program: told in one sentence wherever they come from.
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def main() -> None:
    """Entry point. Exit codes: 0 done, 2 the command's words are wrong, 1 something failed, 130 and 143
    stopped by Ctrl-C and SIGTERM, to be given again."""
    try:
        app()
    except (UserError, RunFailed) as error:
        _stop(error, error.exit_code)
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "Free some space" if full else "Change its permissions"
        _stop(f"{where}{error.strerror}. {remedy} or choose another folder, then run the same command again.", 2)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"vlbench {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """--version, and nothing else before the verb."""


@contextmanager
def _resumable() -> Iterator[None]:
    """Ctrl-C and SIGTERM leave a cell that the same command resumes: say so (typer would end without a word)."""
    from .stopping import STOPPED, Stopped, stoppable

    try:
        with stoppable(signal.SIGTERM):
            yield
    except Stopped:
        _stop("stopped by SIGTERM; the same command goes on from here.", STOPPED)
    except KeyboardInterrupt:
        _stop("interrupted; the same command goes on from here.", 130)


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
    from .launch.world import leave, world
    from .resolve import resolve
    from .spec import parse
    from .ui import Screen

    spec, workers = resolve(parse(words)), world()
    with _resumable(), Screen(quiet=json or not workers.leads) as screen:
        if plan:
            from .plan import print_plan

            return print_plan(spec, runs, screen, json=json)
        from .cell import open_cell
        from .run import Runner, Uploaded, refuse_unwritable

        cell = workers.first(lambda: open_cell(spec, screen.building))
        _ = (
            cell.id
        )  # reads what the identity is made of: what is wrong with the data is told before anything is written
        if workers.leads:
            refuse_unwritable(runs)
        try:
            record = Runner(runs, screen, checkpoint_seconds=checkpoint_every, world=workers).cell(cell)
        except Uploaded as told:
            return _say_uploaded(told.file, json=json) if workers.leads else None
    leave()
    if workers.leads:
        _finish(record, runs, json=json)
    return None


def _say_uploaded(file: Path, *, json: bool) -> None:
    if json:
        print(jsonlib.dumps({"upload": str(file)}))
    else:
        print(f"{file} is ready for the server; `vlbench score RUN file=PATH` enters what it returns.")


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


@app.command()
def sweep(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE[,VALUE]", help="as for run; a comma separates values, all are combined"),
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="a sweep file: such words, one sweep a line")] = None,
    runs: Runs = RUNS,
    plan: Annotated[bool, typer.Option("--plan", help="print the cells and what is done; run nothing")] = False,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="cells at a time; by default one a GPU or one, or what the cluster holds"),
    ] = None,
    engine: Annotated[str, typer.Option("--engine", help="local: this machine; ray or slurm: a cluster")] = "local",
    address: Annotated[
        str, typer.Option("--address", help="ray: a standing cluster, auto or HOST:PORT; by default this machine alone")
    ] = "",
    gpus_per_cell: Annotated[
        float | None,
        typer.Option("--gpus-per-cell", min=0, help="ray: 1 where there are GPUs; 0.5 lets two cells share one"),
    ] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option("--slurm", metavar="KEY=VALUE", help="slurm: an option of sbatch, like partition=gpu; repeat it"),
    ] = None,
    json: Json = False,
) -> None:
    """Run every combination: vlbench sweep method=upop task=vqav2 sparsity=0.5,0.75 seed=0,1,2."""
    from .launch import sweep as sweeping
    from .launch.engines import Engine
    from .launch.planning import plan as planning
    from .launch.sweepfile import lines_of
    from .ui import Screen

    if not words and file is None:
        raise UserError("vlbench sweep takes words like task=vqav2 method=upop,uniform, or --file PATH.")
    chosen = Engine(engine, jobs, address, gpus_per_cell, slurm or ())
    lines = lines_of(words or [], file)
    with _resumable(), Screen(quiet=json) as screen:
        planned = planning(lines, screen.building)
        if plan:
            chosen.refuse_unfit()
            return sweeping.print_plan(planned, runs, json=json)
        made = sweeping.Sweep(planned, runs, screen)
        stopped = _run_sweep(made, chosen)
    sweeping.print_summary(made, json=json)
    if stopped:
        _stop("interrupted; the same command goes on from here.", 130)
    if failed := made.failed():
        raise RunFailed(f"{len(failed)} of {len(planned)} cells failed.")
    return None


def _run_sweep(made: Sweep, engine: Engine) -> bool:
    """Run it. Whether Ctrl-C or SIGTERM stopped it."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        # Ray prints what befalls its tasks; stdout holds the result alone.
        with contextlib.redirect_stdout(sys.stderr):
            made.run(lambda tell: engine.start(made.runs, tell))
    except KeyboardInterrupt:
        return True
    finally:
        signal.signal(signal.SIGTERM, before)
    return False


@app.command()
def status(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE[,VALUE]", help="the words of a sweep; without any, all that lies in --runs"),
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="a sweep file")] = None,
    runs: Runs = RUNS,
    json: Json = False,
) -> None:
    """Which cells are done, running, failed (and why) or to do; the time left: vlbench status --file x.sweep."""
    from .launch.status import print_status

    planned = _cells(words or [], file, quiet=json) if words or file is not None else None
    print_status(planned, runs, json=json)


def _cells(words: list[str], file: Path | None, *, quiet: bool) -> list[str]:
    """The cells of a sweep."""
    from .launch.planning import plan as planning
    from .launch.sweepfile import lines_of
    from .ui import Screen

    with _resumable(), Screen(quiet=quiet) as screen:
        return [one.cell for one in planning(lines_of(words, file), screen.building)]


@app.command("list")
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


@app.command("help")
def help_(
    words: Annotated[list[str], typer.Argument(metavar="KEY=NAME", help="method=, task= or model=NAME")],
) -> None:
    """Options, defaults, ranges, recipes and paper of a plug-in: vlbench help method=upop."""
    from .catalogue import print_help

    print_help(words)


@app.command()
def cost(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="model=NAME,NAME task=NAME sparsity=0.5,0.75; all may be left out"),
    ] = None,
    json: Json = False,
) -> None:
    """Parameters, bytes and MACs of architectures, without weights: vlbench cost model=deit-small sparsity=0.5."""
    from .cost.report import print_costs
    from .spec import parse

    print_costs(parse(words or []), json=json)


@app.command("time")
def time_(
    names: Annotated[list[str], typer.Argument(metavar="RUN", help="finished runs: their names or folders")],
    runs: Runs = RUNS,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda; by default the GPU where there is one")] = "",
    precision: Annotated[str, typer.Option("--precision", help="fp32 or bf16")] = "fp32",
    compiled: Annotated[bool, typer.Option("--compile", help="compile the model's blocks with torch.compile")] = False,
    accelerate: Annotated[
        str, typer.Option("--accelerate", help="semi_structured: verify 2:4 masks and time their linears")
    ] = "",
    json: Json = False,
) -> None:
    """Latency, throughput and memory of finished runs on this device: vlbench time RUN."""
    from .cost.measured import device_of, time_runs
    from .cost.timing import How
    from .ui import Screen

    if precision not in ("fp32", "bf16"):
        raise UserError(f"--precision {precision} should be fp32 or bf16.")
    how = How(device_of(device), "bf16" if precision == "bf16" else "fp32", compiled)
    with Screen(quiet=json) as screen:
        time_runs([_run_folder(name, runs) for name in names], how, screen, json=json, accelerate=accelerate)


@app.command()
def leaderboard(
    check: Annotated[bool, typer.Option("--check", help="write nothing; exit 1 where bytes differ")] = False,
    folder: Annotated[Path, typer.Option(help="the leaderboards folder")] = Path("leaderboards"),
) -> None:
    """Regenerate leaderboards/<suite>/<task>.csv, .md and index.html from leaderboards/results."""
    from .leaderboard import regenerate

    if not (folder / "results").is_dir():
        raise UserError(f"{folder / 'results'} does not exist: run this in the checkout, or give --folder.")
    if check:
        try:
            differences = regenerate.check(folder / "results", folder)
        except UserError as error:  # of a result, not of the command's words
            raise RunFailed(str(error)) from None
        if differences:
            raise RunFailed("\n".join(["leaderboards differ from their results:", *differences]))
        print("leaderboards are what their results say.")
    else:
        for path in regenerate.write(folder / "results", folder):
            print(f"wrote {path}")


@app.command()
def compare(
    names: Annotated[
        list[str],
        typer.Argument(metavar="ROW... [KEY=VALUE]", help="configs, runs or methods; task=, model=, margin=1.0 ..."),
    ],
    runs: Runs = RUNS,
    json: Json = False,
) -> None:
    """Rows of one board on the same samples: vlbench compare dense upop@0.5 magnitude@0.5 task=vqav2 margin=1.0."""
    from .leaderboard.compare import print_comparison
    from .leaderboard.select import FILTERS

    given, words = _names_and_words(names, (*FILTERS, "margin"))
    print_comparison(given, words, runs, as_json=json)


@app.command("table")
def table_(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="task=, model=, pattern= ... and format=markdown, latex or csv"),
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="a sweep file: the rows of its cells, no others")] = None,
    runs: Runs = RUNS,
) -> None:
    """Rows of the leaderboards for a page or a paper: vlbench table task=vqav2 format=latex."""
    from .leaderboard.export import table_text
    from .leaderboard.select import FILTERS

    names, given = _names_and_words(words or [], (*FILTERS, "format"))
    if names:
        raise UserError(f"vlbench table takes words like task=vqav2 format=latex, not {names[0]!r}.")
    text, left_out = table_text(given, runs, None if file is None else _cells([], file, quiet=True))
    for sentence in left_out:
        print(f"left out: {sentence}", file=sys.stderr)
    print(text, end="")


def _names_and_words(arguments: list[str], known: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """Names, and key=value words of which only `known` ones make sense here."""
    from .errors import did_you_mean
    from .spec import parse

    words = parse([a for a in arguments if "=" in a])
    if wrong := [key for key in words if key not in known]:
        raise UserError(f"{wrong[0]}= is not known here. {did_you_mean(wrong[0], known)}")
    return [a for a in arguments if "=" not in a], words


@app.command()
def plot(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="finished runs, or a board: task=NAME suite=mini model=NAME"),
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="a sweep file: the rows of its cells, no others")] = None,
    runs: Runs = RUNS,
    out: Annotated[Path, typer.Option("--out", help="the folder to write pictures into")] = Path("plots"),
) -> None:
    """Pictures (PNG, SVG, CSV) of finished runs, a board or a sweep: vlbench plot RUN RUN, vlbench plot task=nlvr2."""
    from .plots.command import plot as draw

    if not words and file is None:
        raise UserError("vlbench plot takes runs, words of a board like task=nlvr2, or --file PATH.")
    cells = None if file is None else _cells([], file, quiet=True)
    files, left_out = draw(words or [], lambda name: _run_folder(name, runs), runs, out, cells)
    for sentence in left_out:
        print(f"left out: {sentence}", file=sys.stderr)
    for file in files:
        print(f"wrote {file}")


@app.command()
def page(
    names: Annotated[list[str], typer.Argument(metavar="RUN", help="finished runs: their names or folders")],
    runs: Runs = RUNS,
) -> None:
    """A page to look into a finished run: its configuration, curves and samples, in RUN/page.html."""
    from .pages.run import write_page

    for name in names:
        file, why = write_page(_run_folder(name, runs))
        if why:
            print(f"no samples: {why}", file=sys.stderr)
        print(f"wrote {file}")


@app.command()
def submit(
    names: Annotated[
        list[str], typer.Argument(metavar="RUN... [upload=DIR]", help="names or folders; upload=DIR alone: all runs")
    ],
    runs: Runs = RUNS,
    folder: Annotated[Path, typer.Option(help="the leaderboards folder")] = Path("leaderboards"),
) -> None:
    """Verify finished runs and copy their records to leaderboards/results, or to a folder to hand in: upload=DIR."""
    from .leaderboard.submission import submit as submit_run
    from .leaderboard.submission import submit_all, submit_each

    given, words = _names_and_words(names, ("upload",))
    if "upload" in words and not given:
        return _submit_all(submit_all(runs, Path(words["upload"])))
    if "upload" not in words and not folder.is_dir():
        raise UserError(f"{folder} does not exist: run this in the checkout, or give --folder or upload=DIR.")
    target = Path(words["upload"]) if "upload" in words else folder / "results"
    found = [_run_folder(name, runs) for name in given]
    if len(found) > 1:
        return _submit_all(submit_each(found, target))
    print(f"wrote {submit_run(found[0], target)}; `vlbench leaderboard` makes the tables.")
    return None


def _submit_all(told: Iterator[tuple[str, bool]]) -> None:
    fine = []
    for line, good in told:
        print(line, flush=True)
        fine.append(good)
    if not all(fine):
        raise RunFailed(f"{fine.count(False)} of {len(fine)} runs were refused.")


@app.command()
def score(
    name: Annotated[str, typer.Argument(metavar="RUN", help="the run whose upload file was sent: its name or folder")],
    words: Annotated[list[str], typer.Argument(metavar="file=PATH", help="the server's JSON, {metric: value}")],
    runs: Runs = RUNS,
) -> None:
    """Enter what an evaluation server returned: vlbench score RUN file=scores.json."""
    from .server import enter_score
    from .spec import parse

    given = parse(words)
    if set(given) != {"file"}:
        raise UserError("vlbench score takes RUN and file=PATH.")
    print(f"wrote {enter_score(_run_folder(name, runs), Path(given['file']))}")


@app.command()
def export(
    name: Annotated[str, typer.Argument(metavar="RUN", help="the run: its name, the beginning of it, or its folder")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="the folder to write, which must not exist")],
    runs: Runs = RUNS,
) -> None:
    """A compressed model with a loader that needs no vlbench: vlbench export RUN DIR."""
    from .export import export as write

    for line in write(name, folder, runs):
        print(line)


def _run_folder(name: str, runs: Path) -> Path:
    """A run by its folder or, in `runs`, by its name."""
    return Path(name) if (Path(name) / "cell.json").is_file() else runs / name


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
def check(words: Words, runs: Runs = RUNS) -> None:
    """Test a method's contract, or a model's published numbers: vlbench check method=mine, or model=NAME limit=1000."""
    from .spec import parse
    from .ui import Screen

    given = parse(words)
    if "model" not in given and set(given) != {"method"}:
        raise UserError("vlbench check takes method=NAME, or model=NAME with limit=N.")
    with _resumable(), Screen() as screen:
        if "model" in given:
            return _check_model(given, runs, screen)
        from .contract import check_method

        for line in check_method(given["method"], screen):
            print(line, flush=True)
    print(f"{given['method']} keeps the contract of methods.")
    return None


def _check_model(given: dict[str, str], runs: Path, screen: Screen) -> None:
    from .parity import check_model

    good = True
    for line, fine in check_model(given, runs, screen):
        print(line, flush=True)
        good = good and fine
    if not good:
        raise RunFailed(f"{given['model']} does not score what its card says was published.")


@data_app.command("where")
def data_where(json: Json = False) -> None:
    """The folders that tasks read, as vlbench.toml and VLBENCH_DATA name them."""
    from .data.verify import print_where

    print_where(json=json)


@data_app.command("verify")
def data_verify(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="task=NAME,NAME split=NAME,NAME suite=mini; all may be left out"),
    ] = None,
    images: Annotated[bool, typer.Option("--images", help="decode every image, too")] = False,
    json: Json = False,
) -> None:
    """Missing files, annotations that do not parse, samples without their images: vlbench data verify task=vqav2."""
    from .data.verify import print_roots, verify
    from .spec import parse
    from .ui import Screen

    with _resumable(), Screen(quiet=json) as screen:
        roots = verify(parse(words or []), screen, images=images)
    print_roots(roots, json=json)
    if bad := [root.name for root in roots if not root.intact]:
        raise RunFailed(f"not intact: {', '.join(bad)}.")


if __name__ == "__main__":
    main()
