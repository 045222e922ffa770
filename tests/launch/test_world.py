"""Several workers on one cell: the same bytes as one, whatever the counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import make_data, make_weights, write_toml
from tests.workers import together
from vlbench.launch.world import ALONE, World


def test_all_hear_the_leader() -> None:
    assert together(3, lambda w: [w.share(f"{w.rank}/{i}") for i in range(3)]) == [["0/0", "0/1", "0/2"]] * 3


def test_the_leader_works_first() -> None:
    order: list[int] = []
    together(3, lambda w: w.first(lambda: order.append(w.rank)))
    assert order[0] == 0
    assert sorted(order) == [0, 1, 2]


def test_a_barrier_waits_for_the_last() -> None:
    here: list[int] = []

    def work(world: World) -> int:
        here.append(world.rank)
        world.barrier()
        return len(here)

    assert together(3, work) == [3, 3, 3]


def test_alone_nobody_is_waited_for() -> None:
    ALONE.barrier()
    assert (ALONE.share("x"), ALONE.first(lambda: 5), ALONE.leads) == ("x", 5, True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workers")
    make_data(folder / "data", val=3)
    make_weights(folder / "weights")
    write_toml(folder, {"imagenet": folder / "data"})
    return folder


def run(place: Path, workers: int, *words: str) -> Path:
    """The folder of the cell that `workers` processes ran."""
    runs = place / f"runs{workers}"
    cell = ["suite=full", "task=imagenet", "model=deit-mini", f"checkpoint={place / 'weights'}", "batch_size=2", *words]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers), "-m"]
    done = subprocess.run(
        [*(start if workers > 1 else [sys.executable, "-m"]), "vlbench.cli", "run", *cell, "--json", f"--runs={runs}"],
        cwd=place, env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return runs / str(json.loads(done.stdout)["cell"])


@pytest.mark.parametrize("words", [("method=magnitude", "sparsity=0.5"), ("method=dense", "limit=2")])
def test_one_two_and_three_workers_write_the_same_bytes(place: Path, words: tuple[str, ...]) -> None:
    """Five batches of nine samples do not divide; one batch of two is fewer than the workers."""
    folders = [run(place, workers, *words) for workers in (1, 2, 3)]
    assert len({(f / "predictions.jsonl").read_bytes() for f in folders}) == 1
    records = [json.loads((f / "result.json").read_text()) for f in folders]
    for record in records:
        del record["provenance"], record["phases"]
    assert records[0] == records[1] == records[2]
    assert not [p for f in folders for p in f.glob("*.part*")]
