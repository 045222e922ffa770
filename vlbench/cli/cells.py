"""Verbs that run cells."""

from __future__ import annotations

import contextlib
import json as jsonlib
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import RunFailed, UserError
from ..machine.device import ask_for
from .common import RUNS, WORDS, Device, Json, Runs, cells_of, resumable, stop

if TYPE_CHECKING:
    from ..cell.spec import Spec
    from ..machine.ui import Screen
    from ..machine.workers import World
    from ..records.record import Record
    from ..sweep.engines import Engine
    from ..sweep.sweep import Sweep


EXAMPLE = """vlbench run takes words that describe a cell:
  vlbench run method=magnitude task=imagenet sparsity=0.5     (half a minute on a laptop)
  vlbench run method=upop task=vqav2                          (a minute or two)
`vlbench list` shows tasks, models and methods; `vlbench help method=upop` what one takes."""


def run(
    words: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help=WORDS)] = None,
    runs: Runs = RUNS,
    plan: Annotated[bool, typer.Option("--plan", help="print the resolved cell and what is done; run nothing")] = False,
    on: Annotated[
        str, typer.Option("--on", help="with --plan: memory and seconds on h200, a100, 4090 or cpu, without having it")
    ] = "",
    json: Json = False,
    board: Annotated[bool, typer.Option("--board", help="print the whole board, not the nearest rows alone")] = False,
    metrics: Annotated[bool, typer.Option("--metrics", help="print the secondary metrics, too")] = False,
    device: Device = "",
    checkpoint_every: Annotated[float, typer.Option(help="seconds between two saved training states")] = 15.0,
) -> None:
    """Run one cell and print its row: vlbench run method=upop task=vqav2."""
    if not words:
        raise UserError(EXAMPLE)
    from ..cell.index import indexed
    from ..cell.words import parse
    from ..machine.ui import Screen
    from ..machine.workers import leave, world
    from ..plugins.entry import reading_once

    _refuse_device(on, plan)
    ask_for(device)
    workers = world()
    with resumable(), Screen(quiet=json or not workers.leads) as screen:
        with reading_once():
            spec = indexed(parse(words))
            if plan:
                from .plan import print_plan

                return print_plan(spec, runs, screen, json=json, on=on)
        done = _run(spec, runs, screen, workers, checkpoint_every)
    leave()
    if workers.leads:
        if isinstance(done, Path):
            _say_uploaded(done, json=json)
        else:
            _finish(done, runs, json=json, board=board, metrics=metrics)
    return None


def _refuse_device(on: str, plan: bool) -> None:
    """Raise UserError for --on without --plan, and for a device that no plan can be made for."""
    from ..cost.devices import refuse_unknown

    if on and not plan:
        raise UserError("--on belongs to --plan, which runs nothing: vlbench run ... --plan --on a100.")
    if on:
        refuse_unknown(on)


def _run(spec: Spec, runs: Path, screen: Screen, workers: World, checkpoint_every: float) -> Record | Path:
    """The cell's record, or the file for the server of a split whose answers are not here."""
    from ..cell.cell import identified, open_cell
    from ..disk.storage import refuse_unwritable
    from ..machine.device import refuse_precision
    from ..records.record import intact

    refuse_precision(spec.words.precision)
    # With what its identity is made of: what is wrong with the data is told before anything is written.
    cell = workers.first("open the cell", lambda: identified(open_cell(spec, screen.building, screen.digesting)))
    if workers.leads:
        refuse_unwritable(runs)
    if workers.size == 1 and (record := intact(runs / cell.id)):
        return record
    from ..run.runner import Runner, Uploaded  # brings torch, which a finished cell does without

    try:
        return Runner(runs, screen, checkpoint_seconds=checkpoint_every, world=workers).cell(cell)
    except Uploaded as upload:
        return upload.file


def _say_uploaded(file: Path, *, json: bool) -> None:
    if json:
        print(jsonlib.dumps({"upload": str(file)}))
    else:
        print(f"{file} is ready for the server; `vlbench score RUN file=PATH` enters what it returns.")


def _finish(record: Record, runs: Path, *, json: bool, board: bool, metrics: bool) -> None:
    from ..leaderboard.local import print_board, print_excerpt

    if json:
        print(record.model_dump_json(indent=1))
    elif board:
        print_board(record, runs)
    else:
        print_excerpt(record, runs, metrics=metrics)
    if not record.complete:
        raise RunFailed(
            f"the cell is incomplete: {', '.join(record.flags)}. {runs / record.cell / 'predictions.jsonl'} names "
            "them; mend the data, delete that folder and run again."
        )


SweepFile = Annotated[
    Path | None, typer.Option("--file", help="a file of such words, a sweep a line; or one that ships: mini")
]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", min=1, help="cells at a time; by default one a GPU or one, or what the cluster holds"),
]
Address = Annotated[
    str, typer.Option("--address", help="ray: a standing cluster, auto or HOST:PORT; by default this machine alone")
]
GpusPerCell = Annotated[
    float | None,
    typer.Option("--gpus-per-cell", min=0, help="ray: 1 where there are GPUs; 0.5 lets two cells share one"),
]
SlurmOptions = Annotated[
    list[str] | None,
    typer.Option("--slurm", metavar="KEY=VALUE", help="slurm: an option of sbatch, like partition=gpu; repeat it"),
]


def sweep(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE[,VALUE]", help="as for run; a comma separates values, all are combined"),
    ] = None,
    file: SweepFile = None,
    runs: Runs = RUNS,
    plan: Annotated[bool, typer.Option("--plan", help="print the cells and what is done; run nothing")] = False,
    jobs: Jobs = None,
    device: Device = "",
    engine: Annotated[str, typer.Option("--engine", help="local: this machine; ray or slurm: a cluster")] = "local",
    address: Address = "",
    gpus_per_cell: GpusPerCell = None,
    slurm: SlurmOptions = None,
    json: Json = False,
) -> None:
    """Run every combination: vlbench sweep method=upop task=vqav2 sparsity=0.5,0.75 seed=0,1,2."""
    from ..machine.ui import Screen
    from ..sweep import sweep as sweeping
    from ..sweep.engines import Engine
    from ..sweep.planning import plan as planning
    from ..sweep.sweepfile import lines_of

    if not words and file is None:
        raise UserError("vlbench sweep takes words like task=vqav2 method=upop,uniform, or --file PATH.")
    ask_for(device)
    chosen = Engine(engine, jobs, address, gpus_per_cell, slurm or ())
    with resumable(), Screen(quiet=json) as screen:
        planned = planning(lines_of(words or [], file), screen.building, screen.digesting)
        if plan:
            chosen.refuse_unfit()
            return sweeping.print_plan(planned, runs, json=json)
        made = sweeping.Sweep(planned, runs, screen)
        stopped = _run_sweep(made, chosen)
    sweeping.print_summary(made, json=json)
    if stopped:
        stop("interrupted; the same command goes on from here.", 130)
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


def reproduce(
    name: Annotated[str, typer.Argument(metavar="TABLE", help="upop, sparselora, or a path that ends with .sweep")],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="its lines with these words alone, like task=nlvr2")
    ] = None,
    runs: Runs = RUNS,
    plan: Annotated[bool, typer.Option("--plan", help="print what was published, what is done and what lacks")] = False,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="cells at a time, on this machine")] = None,
    device: Device = "",
    json: Json = False,
) -> None:
    """A paper's table, published against measured: vlbench reproduce upop task=nlvr2."""
    from ..cell.words import parse
    from ..machine.ui import Screen
    from ..sweep import reproduce as table
    from ..sweep import sweep as sweeping
    from ..sweep.engines import Engine

    ask_for(device)
    stopped, failed = False, 0
    with resumable(), Screen(quiet=json) as screen:
        opened = table.opened(table.read_table(table.table_file(name), parse(words or [])), screen)
        if not plan and not opened.planned:
            raise UserError("\n".join(["no cell of this table can be run here:", *opened.missing()]))
        if not plan:
            made = sweeping.Sweep(opened.planned, runs, screen)
            stopped = _run_sweep(made, Engine("local", jobs))
            failed = len(made.failed())
    table.print_table(opened, runs, json=json)
    if stopped:
        stop("interrupted; the same command goes on from here.", 130)
    if failed:
        raise RunFailed(f"{failed} of {len(opened.planned)} cells failed.")


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
    from ..sweep.status import print_status

    planned = cells_of(words or [], file, quiet=json) if words or file is not None else None
    print_status(planned, runs, json=json)
