"""Several workers on one cell: the same bytes as one, whatever the counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.lab import make_data, make_weights, write_toml
from tests.workers import together
from vlbench.errors import RunFailed, UserError
from vlbench.machine.workers import ALONE, World, world

pytestmark = pytest.mark.slow


def test_all_hear_the_leader() -> None:
    assert together(3, lambda w: [w.share("talk", f"{w.rank}/{i}") for i in range(3)]) == [["0/0", "0/1", "0/2"]] * 3


def test_the_leader_works_first() -> None:
    order: list[int] = []
    together(3, lambda w: w.first("work", lambda: order.append(w.rank)))
    assert order[0] == 0
    assert sorted(order) == [0, 1, 2]


def test_a_barrier_waits_for_the_last() -> None:
    here: list[int] = []

    def work(world: World) -> int:
        here.append(world.rank)
        world.barrier("all")
        return len(here)

    assert together(3, work) == [3, 3, 3]


def test_all_hear_all_and_have_one_sum() -> None:
    def work(world: World) -> tuple[list[str], list[float]]:
        told, tensor = world.gather("hear", f"{world.rank}!"), torch.tensor([1.0, 10.0**world.rank])
        world.sum(tensor)
        return told, tensor.tolist()

    assert together(3, work) == [(["0!", "1!", "2!"], [3.0, 111.0])] * 3


def test_a_worker_that_comes_to_another_meeting_is_told_both_names() -> None:
    """Until now it waited for a year, or was given what was meant for another place."""

    def work(world: World) -> str:
        world.barrier("begin")
        with pytest.raises(RunFailed) as error:
            world.gather("save the mask" if world.rank == 1 else "evaluate", "x")
        return str(error.value)

    heard = together(3, work)
    assert len(set(heard)) == 1
    assert "'save the mask'" in heard[0]
    assert "'evaluate'" in heard[0]
    assert "meeting 2" in heard[0]


def test_alone_nobody_is_waited_for() -> None:
    ALONE.barrier("x")
    ALONE.sum(torch.ones(1))
    assert (ALONE.share("at", "x"), ALONE.gather("at", "y"), ALONE.first("at", lambda: 5), ALONE.leads) == (
        "x",
        ["y"],
        5,
        True,
    )


def test_more_workers_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr("vlbench.machine.workers.count", lambda: 2)
    with pytest.raises(
        UserError, match="this machine has 2 GPUs, one a worker: start torchrun with --nproc-per-node 2"
    ):
        world.__wrapped__()


TRAINED = (
    "method=wanda+finetune", "sparsity=0.5", "wanda.calibration_samples=5", "finetune.steps=3",
    "finetune.batch_size=5", "finetune.optimiser=sgd", "finetune.tune=1e-3,5e-4",
)  # fmt: skip
# Five batches of nine samples do not divide; one batch of two is fewer than the workers.
CELLS = (("method=magnitude", "sparsity=0.5"), ("method=dense", "limit=2"), TRAINED)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[list[Path]]:
    """Of every cell its folders, as one, two and three workers wrote it. Workers run all cells, for starting them takes
    most of the time."""
    place = tmp_path_factory.mktemp("workers")
    make_data(place / "data", train=40, val=3)
    make_weights(place / "weights")
    write_toml(place, {"imagenet": place / "data"})
    by_workers = [_run(place, workers) for workers in (1, 2, 3)]
    return [[found[number] for found in by_workers] for number in range(len(CELLS))]


def _run(place: Path, workers: int) -> list[Path]:
    """The folders of the cells that `workers` processes ran."""
    runs = place / f"runs{workers}"
    same = [
        "suite=full",
        "task=imagenet",
        "model=deit-mini",
        f"checkpoint={place / 'weights'}",
        "evaluation.batch_size=2",
    ]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    done = subprocess.run(
        [*(start if workers > 1 else [sys.executable]), str(Path(__file__).with_name("cells.py")), str(runs),
         json.dumps([[*same, *words] for words in CELLS])],
        cwd=place, env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [runs / cell for cell in json.loads(done.stdout.splitlines()[-1])]


@pytest.mark.parametrize("number", [0, 1])
def test_one_two_and_three_workers_write_the_same_bytes(folders: list[list[Path]], number: int) -> None:
    assert len({(f / "predictions.jsonl").read_bytes() for f in folders[number]}) == 1
    records = [json.loads((f / "result.json").read_text()) for f in folders[number]]
    for record, workers in zip(records, (None, 2, 3), strict=True):
        assert record["provenance"].get("workers") == workers
        del record["provenance"], record["phases"]
    assert records[0] == records[1] == records[2]
    assert not [p for f in folders[number] for p in f.glob("*.part*")]


def test_workers_calibrate_tune_and_train_what_one_process_does(folders: list[list[Path]]) -> None:
    """Five calibration samples and batches of five do not divide. SGD, because Adam makes a full step of a gradient
    that is nothing but rounding (of a key's bias, which the softmax does not see)."""
    alone, *others = (load_file(folder / "model" / "model.safetensors") for folder in folders[2])
    for other in others:
        assert max(float((alone[n] - other[n]).abs().max()) for n in alone) <= 1e-5
    assert len({(f / "model" / "masks.bin").read_bytes() for f in folders[2]}) == 1
    assert not [f for f in folders[2] if (f / "checkpoint").exists()]
    ids = {json.dumps(json.loads((f / "result.json").read_text())["identity"]) for f in folders[2]}
    assert len(ids) == 1
