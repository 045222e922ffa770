"""Verbs of the leaderboards, and what goes into them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from ..errors import RunFailed, UserError
from ..records.runs import run_of
from .common import RUNS, Json, Runs, cells_of, names_and_words

LEADERBOARDS = Path("leaderboards")


def leaderboard(
    check: Annotated[bool, typer.Option("--check", help="write nothing; exit 1 where bytes differ")] = False,
    folder: Annotated[Path, typer.Option(help="the leaderboards folder")] = LEADERBOARDS,
    runs: Runs = RUNS,
) -> None:
    """Regenerate leaderboards/<suite>/<task>.csv, .md and index.html from leaderboards/results.

    Where there is no such folder: RUNS/boards, of your own runs beside the committed rows that they compare with."""
    from ..publishing import regenerate

    if not (folder / "results").is_dir():
        if check or folder != LEADERBOARDS:
            raise UserError(f"{folder / 'results'} does not exist: run this in the checkout, or give --folder.")
        for path in regenerate.write_own(runs, runs / "boards"):
            print(f"wrote {runs / 'boards' / path}")
        print(f"{runs / 'boards'}: rows that begin with * were run here.")
        return
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


def compare(
    names: Annotated[
        list[str],
        typer.Argument(metavar="ROW... [KEY=VALUE]", help="configs, runs or methods; task=, model=, margin=1.0 ..."),
    ],
    runs: Runs = RUNS,
    json: Json = False,
) -> None:
    """Rows of one board on the same samples: vlbench compare dense upop@0.5 magnitude@0.5 task=vqav2 margin=1.0."""
    from ..comparison.compare import print_comparison
    from ..leaderboard.filters import FILTERS

    given, words = names_and_words(names, (*FILTERS, "margin"))
    print_comparison(given, words, runs, as_json=json)


def import_(
    logs: Annotated[list[Path], typer.Argument(metavar="LOG...", help="per-sample logs, the dense model's first")],
    metric: Annotated[str, typer.Option("--metric", help="the score to compare, where a log has several")] = "",
    cluster: Annotated[str, typer.Option("--cluster", help="a field that samples have in common, like the image")] = "",
    json: Json = False,
) -> None:
    """Logs of lmms-eval or VLMEvalKit, compared sample by sample: vlbench import dense.jsonl pruned.jsonl."""
    from ..evaluators.compared import print_logs

    print_logs(logs, metric, cluster, as_json=json)


def table_(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="task=, model= ... and format=markdown, latex, csv or severity"),
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", help="a sweep file: the rows of its cells, no others")] = None,
    runs: Runs = RUNS,
) -> None:
    """Rows of the leaderboards for a page or a paper: vlbench table task=vqav2 format=latex."""
    from ..leaderboard.export import table_text
    from ..leaderboard.filters import FILTERS

    names, given = names_and_words(words or [], (*FILTERS, "format"))
    if names:
        raise UserError(f"vlbench table takes words like task=vqav2 format=latex, not {names[0]!r}.")
    text, left_out = table_text(given, runs, None if file is None else cells_of([], file, quiet=True))
    for sentence in left_out:
        print(f"left out: {sentence}", file=sys.stderr)
    print(text, end="")


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
    from ..plots.command import plot as draw

    if not words and file is None:
        raise UserError("vlbench plot takes runs, words of a board like task=nlvr2, or --file PATH.")
    cells = None if file is None else cells_of([], file, quiet=True)
    files, left_out = draw(words or [], lambda name: run_of(name, runs), runs, out, cells)
    for sentence in left_out:
        print(f"left out: {sentence}", file=sys.stderr)
    for file in files:
        print(f"wrote {file}")


def submit(
    names: Annotated[
        list[str], typer.Argument(metavar="RUN... [upload=DIR]", help="names or folders; upload=DIR alone: all runs")
    ],
    runs: Runs = RUNS,
    folder: Annotated[Path, typer.Option(help="the leaderboards folder")] = LEADERBOARDS,
) -> None:
    """Verify finished runs and copy their records to leaderboards/results, or to a folder to hand in: upload=DIR."""
    from ..publishing.submission import submit as submit_run
    from ..publishing.submission import submit_all, submit_each

    given, words = names_and_words(names, ("upload",))
    if "upload" in words and not given:
        return _submit_all(submit_all(runs, Path(words["upload"])))
    if "upload" not in words and not folder.is_dir():
        raise UserError(
            f"{folder} does not exist: a result is handed in with a clone of vlbench. Write it with upload=DIR, copy "
            "that into the clone's leaderboards/results and open a pull request (docs/leaderboards.md). "
            "--folder names another one."
        )
    target = Path(words["upload"]) if "upload" in words else folder / "results"
    folders = [run_of(name, runs) for name in given]
    if len(folders) > 1:
        return _submit_all(submit_each(folders, target))
    print(f"wrote {submit_run(folders[0], target)}; `vlbench leaderboard` makes the tables.")
    return None


def _submit_all(lines: Iterator[tuple[str, bool]]) -> None:
    fine = []
    for line, good in lines:
        print(line, flush=True)
        fine.append(good)
    if not all(fine):
        raise RunFailed(f"{fine.count(False)} of {len(fine)} runs were refused.")


def score(
    name: Annotated[str, typer.Argument(metavar="RUN", help="the run whose upload file was sent: its name or folder")],
    words: Annotated[list[str], typer.Argument(metavar="file=PATH", help="the server's JSON, {metric: value}")],
    runs: Runs = RUNS,
) -> None:
    """Enter what an evaluation server returned: vlbench score RUN file=scores.json."""
    from ..cell.words import parse
    from ..records.server import enter_score

    given = parse(words)
    if set(given) != {"file"}:
        raise UserError("vlbench score takes RUN and file=PATH.")
    print(f"wrote {enter_score(run_of(name, runs), Path(given['file']))}")
