"""What many cells cost besides their own work, and what more workers gain:

    python -m tests.benchmarks.scaling plan            100,000 cells planned, 90,000 of them done
    python -m tests.benchmarks.scaling overhead ray    seconds of the engine (local, ray) for each empty cell
    python -m tests.benchmarks.scaling sweep           a sweep by 2 workers against 1
    python -m tests.benchmarks.scaling evaluation      evaluation of one cell by 2 workers against 1
    python -m tests.benchmarks.scaling lost            24 cells on two Ray nodes of which one is killed half-way

Ratios are of one run on one machine. On one that does other work they say little: the load is printed.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.sweep.stub import STUB
from vlbench.machine.ui import Screen
from vlbench.plugins.workspace import package_folder
from vlbench.sweep import process
from vlbench.sweep.engines import Engine
from vlbench.sweep.executor import Executor, Work
from vlbench.sweep.local import LocalExecutor
from vlbench.sweep.planning import Planned, plan
from vlbench.sweep.state import Runs, Times
from vlbench.sweep.sweep import Sweep
from vlbench.sweep.sweepfile import Line

CELLS, DONE = 100_000, 90_000
GRID = {"task": "imagenet", "method": "wanda,sparsegpt,taylor,obd,upop", "sparsity": "0.3,0.4,0.5,0.6,0.7"}


def say(text: str) -> None:
    """With the machine's load, without which a time says nothing."""
    print(f"{text}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)


def lines(cells: int) -> list[Line]:
    """25 combinations, and as many seeds as it takes."""
    seeds = ",".join(str(number) for number in range(-(-cells // 25)))
    return [Line({**GRID, "seed": seeds})]


def write_results(runs: Path, cells: list[str]) -> None:
    """A published result of 9 KB for each, under the cell's name: links to ten files, or writing would take minutes."""
    folder = package_folder("leaderboards") / "results" / "mini"
    text = next(folder.glob("*imagenet*-wanda-0.5-s0-*.json")).read_bytes()
    files = [runs / f".{number}" for number in range(10)]
    for file in files:
        file.write_bytes(text)
    for number, cell in enumerate(cells):
        (runs / cell).mkdir()
        (runs / cell / "result.json").hardlink_to(files[number % len(files)])


def planning() -> None:
    plan(lines(25))  # imports, the mini world and the digests of weights are there
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        start, spent = time.monotonic(), time.process_time()
        planned = plan(lines(CELLS))
        resolved, spent = time.monotonic() - start, time.process_time() - spent
        write_results(runs, [one.cell for one in planned[1 : DONE + 1]])
        start, before = time.monotonic(), time.process_time()
        found, seconds = _planned_again(planned, runs)
        told, spent = time.monotonic() - start, spent + time.process_time() - before
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        say(
            f"{len(planned)} cells, {found} done: {resolved:.1f} s to plan, {told:.1f} s to see what is done "
            f"({spent:.1f} s of a core together); {memory:.2f} GB at most"
        )
        assert seconds > 0


def _planned_again(planned: list[Planned], runs: Path) -> tuple[int, float]:
    """Cells that are done, and seconds of work that is left."""
    there = Runs.read(runs)
    times = Times(there)
    states = [there.state(one.cell) for one in planned]
    rest = [one for one, state in zip(planned, states, strict=True) if state != "done"]
    return states.count("done"), sum(times.seconds(one.cell) or 0.0 for one in rest)


def overhead(engine: str, cells: int = 40) -> None:
    """Of cells that do nothing, in a worker that is there: the second half of the cells."""
    process.ARGUMENTS = ("-c", STUB)
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        if engine == "ray":
            executor: Executor = Engine("ray", 1, gpus_per_cell=0).start(Path(folder), lambda: None)
        else:
            executor = LocalExecutor(Path(folder), 1)
        ready = time.monotonic() - start
        ends = _ends(executor, [Work(f"cell-{number}", {"do": "go"}) for number in range(cells)])
    each = (ends[-1] - ends[cells // 2 - 1]) / (cells - cells // 2)
    say(f"{engine}: {each:.4f} s a cell, {ready:.1f} s to start")


def _ends(executor: Executor, works: list[Work]) -> list[float]:
    executor.submit(works)
    try:
        found = []
        for outcome in executor.outcomes():
            assert outcome.state == "done", outcome
            found.append(time.monotonic())
        return found
    finally:
        executor.close()


def sweep(cells: int = 6) -> None:
    """Mini cells of 10 s, their imports and their dense baseline counted, for which the second worker waits."""
    words = ["task=vqav2", "method=wanda", "sparsity=0.5", f"seed={','.join(map(str, range(cells)))}"]
    seconds = [_timed(partial(_sweep, words, jobs)) for jobs in (1, 2)]
    say(f"a sweep of {cells} cells: {seconds[0]:.1f} s by 1 worker, {seconds[0] / seconds[1]:.2f} times as fast by 2")


def _sweep(words: list[str], jobs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "vlbench.cli", "sweep", *words, "--jobs", str(jobs), "--runs", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})


def evaluation() -> None:
    """The dense cell by torchrun, without what one worker takes for two samples: imports and the model, some 10 s that
    differ by a second. So the cell is one whose evaluation takes longer (retrieval with re-ranking)."""
    words = ["-m", "vlbench.cli", "run", "task=coco_retrieval", "--json"]
    seconds = []
    for workers in (1, 2):
        small, whole = (_timed(partial(_run, words, workers, limit)) for limit in ("limit=2", "limit=0"))
        seconds.append(whole - small)
    say(f"evaluation: {seconds[0]:.1f} s by 1 worker, {seconds[0] / seconds[1]:.2f} times as fast by 2")


def _run(words: list[str], workers: int, limit: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={workers}", "--standalone"]
        command = [*launch, *words, limit, "--runs", folder]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, **quiet)  # type: ignore[call-overload]


def _timed(work: Callable[[], None]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


def lost() -> None:
    """24 cells of the mini suite with real workers; the second node is killed when twelve are done."""
    from ray.cluster_utils import Cluster

    words = {
        "task": "imagenet",
        "method": "wanda",
        "limit": "64",
        "sparsity": "0.5",
        "seed": ",".join(map(str, range(23))),
    }
    planned = plan([Line(words)])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 * 2**20})
    node = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)

        def lose() -> None:
            while sum(1 for _ in runs.glob("*/result.json")) < 12:
                time.sleep(0.1)
            cluster.remove_node(node, allow_graceful=False)

        thread = threading.Thread(target=lose, daemon=True)
        thread.start()
        made = Sweep(planned, runs, Screen())
        made.run(lambda tell: Engine("ray", address=cluster.address).start(runs, tell))
        results = [record.cell for record in made.records()]
        say(f"{len(planned)} cells, a node killed after 12: {len(results)} results, {len(set(results))} cells")
        assert sorted(results) == sorted(one.cell for one in planned)
    cluster.shutdown()


def main(what: str, *more: str) -> None:
    todo = {"plan": planning, "overhead": overhead, "sweep": sweep, "evaluation": evaluation, "lost": lost}
    todo[what](*more)  # type: ignore[operator]


if __name__ == "__main__":
    main(*sys.argv[1:])
