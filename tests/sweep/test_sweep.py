"""Sweeps: what is planned, what is run, and what is told."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.lab import Lab, make_weights, method_file
from tests.waiting import until
from vlbench.errors import UserError
from vlbench.machine.ui import Screen
from vlbench.sweep import worker
from vlbench.sweep.engines import Engine
from vlbench.sweep.executor import Outcome, Work
from vlbench.sweep.planning import Planned, plan
from vlbench.sweep.state import Runs
from vlbench.sweep.sweep import Sweep
from vlbench.sweep.sweepfile import Line

SLOW = """import time
        from pathlib import Path
        Path("begun").touch()
        while True:
            time.sleep(0.01)
        return ("""


@pytest.fixture
def lab(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("COLUMNS", "200")
    return lab


def line(lab: Lab, **words: str) -> Line:
    given = dict(word.split("=", 1) for word in lab.words)
    return Line({**given, **words})


# What is planned ---------------------------------------------------------------------------------------------------


def test_duplicates_are_planned_once_and_baselines_first(lab: Lab) -> None:
    """magnitude draws no random numbers, so that its three seeds are one cell; all share one dense cell."""
    found = plan([line(lab, method="magnitude,wanda", seed="0,1,2", sparsity="0.5,2:4"), line(lab, method="dense")])
    assert len(found) == 1 + 2 + 6
    assert "-dense-" in found[0].cell
    assert not found[0].work.baseline or found[0].work.words["method"] != "dense"
    assert {one.dense for one in found[1:]} == {found[0].cell}


def test_the_planned_identity_is_that_of_a_run(lab: Lab) -> None:
    found = plan([line(lab, method="magnitude", sparsity="0.5,0.25")])
    for one in found[1:]:
        words = [f"{key}={value}" for key, value in one.work.words.items()]
        assert json.loads(lab("run", *words, "--plan", "--json").out)["cell"] == one.cell


def test_shared_digests_change_no_identity(lab: Lab) -> None:
    """Planned together and each alone."""
    lines = [line(lab, method="magnitude"), line(lab, method="magnitude+finetune"), line(lab, limit="2"), line(lab)]
    together = {one.cell for one in plan(lines)}
    assert together == {one.cell for single in lines for one in plan([single])}


def test_cells_that_differ_in_their_seed_are_those_of_single_runs(lab: Lab) -> None:
    """They are resolved together, and named from the first."""
    words = {"method": "wanda+finetune", "wanda.sparsity": "0.5", "steps": "3", "seed": "4,0,10,7", "limit": "2"}
    together = plan([line(lab, **words)])
    alone = [plan([line(lab, **{**words, "seed": seed})]) for seed in ("4", "0", "10", "7")]
    assert [one.cell for one in together] == list(dict.fromkeys(one.cell for cells in alone for one in cells))
    assert [one.work.words["seed"] for one in together[1:]] == ["4", "0", "10", "7"]
    assert {one.dense for one in together[1:]} == {together[0].cell}
    assert {one.steps for one in together[1:]} == {3}


@pytest.mark.parametrize("seed", ["-1", "x", "99999999999", "1.5"])
def test_a_wrong_seed_among_right_ones_is_told(lab: Lab, seed: str) -> None:
    with pytest.raises(UserError, match=f"seed={seed}") as told:
        plan([line(lab, method="wanda", seed=f"0,{seed},1")])
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"method": "magnitude", "sparsity": "0.5", "ratio": "2x,4x"}, "give sparsity= or ratio=, not both"),
        ({"method": "magnitude,wanda", "sparsity": "0.5,,0.75"}, "has an empty value between two commas"),
        ({"method": "magnitude+finetune", "finetune": "off", "finetune.steps": "3"}, "no meaning with finetune=off"),
    ],
)
def test_contradicting_words_are_told_in_one_sentence(lab: Lab, words: dict[str, str], why: str) -> None:
    with pytest.raises(UserError) as told:
        plan([line(lab, **words)])
    assert why in str(told.value)
    assert len(str(told.value).splitlines()) == 1


def test_every_mistake_is_told_at_once_and_nothing_is_run(lab: Lab) -> None:
    words = ["task=imagenet,imagnet", "method=dense,magnitude,upop", "sparsity=0.5,2:4", "sed=1"]
    told = lab.refused("sweep", *[w for w in lab.words if not w.startswith("task=")], *words)
    assert "there is no task 'imagnet'" in told
    assert "sed= is not known here. Did you mean 'seed'?" in told
    assert "sparsity= is not known here" in told
    assert "on a line of its own" not in told, "what only some cells know cannot be told while others are unreadable"
    assert "upop_search does not make it" in told
    assert "method=upop sparsity=2:4" in told


def test_dense_with_a_sparsity_is_told_what_to_do(lab: Lab) -> None:
    told = lab.refused("sweep", "task=imagenet", "method=dense,magnitude", "sparsity=0.5")
    assert "sparsity= is not known here" in told
    assert "put method=dense on a line of its own" in told


def test_a_word_of_one_task_in_a_line_of_two(lab: Lab) -> None:
    told = lab.refused("sweep", "task=vqav2,imagenet", "decoding=generate")
    assert "decoding= is not known here" in told
    assert "put task=imagenet on a line of its own" in told


def test_what_is_missing_is_told_with_who_needs_it(lab: Lab) -> None:
    lines = [line(lab, checkpoint=f"{lab.weights},/no/such"), line(lab, method="magnitude", checkpoint="/nor/this")]
    with pytest.raises(UserError) as told:
        plan(lines)
    text = str(told.value)
    assert text.index("/no/such") < text.index("/nor/this")
    assert "(needed by suite=full task=imagenet model=deit-mini checkpoint=/no/such)" in text


def test_without_words_the_verb_says_what_it_takes(lab: Lab) -> None:
    assert "--file PATH" in lab.refused("sweep")


# What is run: a stand-in executor ----------------------------------------------------------------------------------


class Fake:
    """Ends cells in the order they come; `failing` ones fail, and `interrupt` raises after so many."""

    def __init__(self, failing: Sequence[str] = (), interrupt: int = 99) -> None:
        self.failing, self.interrupt = failing, interrupt
        self.order: list[str] = []
        self.calls = 0
        self.closed = False

    def submit(self, works: Iterable[Work]) -> None:
        self.calls += 1
        self.order += [work.cell for work in works]

    def outcomes(self) -> Iterator[Outcome]:
        for number, cell in enumerate(self.order):
            if number == self.interrupt:
                raise KeyboardInterrupt
            yield Outcome(cell, "failed" if cell in self.failing else "done", "why" if cell in self.failing else "")

    def running(self) -> list[str]:
        return []

    def close(self) -> None:
        self.closed = True


def planned(*names: str) -> list[Planned]:
    """a:b is the cell a with the baseline b."""
    return [Planned(Work(name.partition(":")[0], {}), name.partition(":")[2]) for name in names]


def swept(cells: list[Planned], fake: Fake, runs: Path) -> Sweep:
    sweep = Sweep(cells, runs, Screen(quiet=True))
    sweep.run(lambda tell: fake)
    return sweep


def test_a_cell_begins_when_its_baseline_is_there(tmp_path: Path) -> None:
    fake = Fake()
    swept(planned("d", "e", "a:d", "b:e", "c:d", "f"), fake, tmp_path)
    assert sorted(fake.order) == ["a", "b", "c", "d", "e", "f"]
    for cell, dense in (("a", "d"), ("b", "e"), ("c", "d")):
        assert fake.order.index(dense) < fake.order.index(cell)
    assert fake.order.index("a") > fake.order.index("f"), "it was submitted before its baseline ended"


def test_a_failed_baseline_fails_its_cells_and_no_others(tmp_path: Path) -> None:
    fake = Fake(failing=["d"])
    sweep = swept(planned("d", "e", "a:d", "b:e"), fake, tmp_path)
    assert fake.order == ["d", "e", "b"]
    assert {o.cell: o.reason for o in sweep.failed()} == {"d": "why", "a": "its dense baseline d failed"}


def test_the_longest_cells_begin_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the baselines; of what was never run, what trains for longer."""
    known = {"d": 1.0, "long": 90.0, "short": 2.0, "long:d": 90.0, "middle": 30.0}
    monkeypatch.setattr("vlbench.sweep.sweep.Times", lambda runs: SimpleNamespace(seconds=known.get))
    cells = [*planned("short", "middle:d", "middle2:d", "long", "d"), Planned(Work("new", {}), steps=5)]
    fake = Fake()
    swept([*cells, Planned(Work("newer", {}), steps=9)], fake, tmp_path)
    assert fake.order == ["d", "long", "short", "newer", "new", "middle", "middle2"]


def test_the_end_of_a_baseline_looks_at_its_own_cells_only(tmp_path: Path) -> None:
    """When a baseline ends: 4,000 baselines with a cell each, in a time that a square of 4,000 would not allow."""
    cells = planned(*(f"d{n}" for n in range(4000)), *(f"c{n}:d{n}" for n in range(4000)))
    fake = Fake(interrupt=10**6)
    sweep = swept(cells, fake, tmp_path)
    assert len(sweep.outcomes) == 8000
    assert fake.calls == 4001, "an array of Slurm for nothing"


def test_an_interrupt_closes_the_executor_and_leaves_the_rest(tmp_path: Path) -> None:
    fake = Fake(interrupt=2)
    sweep = Sweep(planned("d", "a:d", "b:d"), tmp_path, Screen(quiet=True))
    with pytest.raises(KeyboardInterrupt):
        sweep.run(lambda tell: fake)
    assert fake.closed
    assert [one.cell for one in sweep.left()] == ["b"]


# The whole, with a real worker -------------------------------------------------------------------------------------


def words_of(lab: Lab, *more: str) -> list[str]:
    return [*lab.words, *more]


def test_one_failed_cell_stops_no_other_and_finished_ones_are_skipped(lab: Lab) -> None:
    """Its oracle is `vlbench run`: the sweep leaves the results that single runs would."""
    lab.plug("methods/bad.py", method_file("bad").replace("return (weight * CONSTANT).abs()", "return 1 / 0"))
    lab.run("method=magnitude", "sparsity=0.25", "--json")
    done = next((lab.folder / "runs").glob("*-magnitude-0.25-*/result.json")).stat().st_mtime_ns
    words = words_of(lab, "method=bad,magnitude", "sparsity=0.25,0.5")
    before = json.loads(lab("sweep", *words, "--plan", "--json").out)
    assert sorted(row["state"] for row in before) == ["done", "done", "to do", "to do", "to do"]
    told = lab("sweep", *words)
    assert told.code == 1
    assert "2 of 5 cells failed" in told.err
    assert "5 cells: 3 done, 2 failed" in told.out
    assert "ZeroDivisionError: division by zero" in told.out
    assert "full / imagenet / deit-mini" in told.out
    log = next((lab.folder / "runs" / "logs").glob("*-bad-0.5-*.log"))
    assert f"log: {log.relative_to(lab.folder)}" in told.out
    assert "Traceback" in log.read_text()
    states = {row["cell"]: row["state"] for row in json.loads(lab("sweep", *words, "--plan", "--json").out)}
    assert sorted(states.values()) == ["done", "done", "done", "failed", "failed"]
    assert next((lab.folder / "runs").glob("*-magnitude-0.25-*/result.json")).stat().st_mtime_ns == done
    made = next(name for name in states if "-magnitude-0.5-" in name)
    again = json.loads(lab.run("method=magnitude", "sparsity=0.5", "--json").out)
    assert again["cell"] == made


def test_what_an_engine_prints_is_no_part_of_the_result(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray prints to sys.stdout that a task died and is tried again: the JSON of a sweep must stay JSON."""

    class Loud(Fake):
        def outcomes(self) -> Iterator[Outcome]:
            print("(raylet) a task failed")
            return super().outcomes()

    monkeypatch.setattr(Engine, "start", lambda self, runs, tell: Loud(failing=[dense]))
    dense = json.loads(lab("sweep", *lab.words, "--plan", "--json").out)[0]["cell"]
    told = lab("sweep", *lab.words, "--json")
    assert json.loads(told.out)["failed"] == 1
    assert "(raylet) a task failed" in told.err


def test_a_folder_with_a_result_of_a_newer_schema_is_refused(lab: Lab) -> None:
    lab.run("--json")
    (file,) = (lab.folder / "runs").glob("*/result.json")
    file.write_text(file.read_text().replace('"schema_version": 2', '"schema_version": 3'))
    sentence = "is of schema 3, this vlbench reads up to 2: update vlbench"
    assert sentence in lab("status").out  # which shows the other cells as well
    for command in (["sweep", *lab.words], ["sweep", *lab.words, "--plan"]):
        told = lab.refused(*command)
        assert sentence in told
        assert len(told.splitlines()) == 1


def test_sigterm_stops_the_running_cell_which_resumes(lab: Lab) -> None:
    """While the worker is inside a method, which never ends: no lease is left, and the cell is not failed."""
    lab.plug("methods/slow.py", method_file("slow").replace("return (", SLOW))

    def terminate() -> None:
        until((lab.folder / "begun").exists)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    told = lab("sweep", *words_of(lab, "method=slow"), "--json")
    assert told.code == 130, told
    assert "the same command goes on from here" in told.err
    rows = {row["cell"]: row["state"] for row in json.loads(told.out)["cells"]}
    assert sorted(rows.values()) == ["done", "left"]
    cell = next(name for name, state in rows.items() if state == "left")
    assert not (lab.folder / "runs" / cell / "lease.json").exists()
    assert Runs.read(lab.folder / "runs").state(cell) == "started"


def test_a_worker_refuses_words_that_mean_another_cell_by_now(lab: Lab) -> None:
    (_, one) = plan([line(lab, method="magnitude")])
    request: dict[str, Any] = {"words": dict(one.work.words), "baseline": False, "runs": "runs", "cell": one.cell}
    make_weights(lab.folder / "other", seed=1)
    request["words"]["checkpoint"] = str(lab.folder / "other")
    state, reason = worker._attempt(request)
    assert state == "failed"
    assert "these words mean another cell now" in reason
    assert not (lab.folder / "runs").exists()
