"""`vlbench time`: what is written and kept. No time is asserted."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.lab import Lab, make_weights
from vlbench.cost import measured, timing
from vlbench.cost.timing import How, Patience
from vlbench.errors import RunFailed
from vlbench.records.record import read_record


@pytest.fixture
def lab(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(timing, "LARGEST", 4)
    for name in ("WARM", "LATENCY", "BATCH"):
        monkeypatch.setattr(timing, name, Patience(2, 2, 0.0))
    return lab


def cells(lab: Lab) -> dict[str, str]:
    """The names of a dense and a cut run."""
    lab.run("method=uniform")
    names = [path.parent.name for path in (lab.folder / "runs").glob("*/result.json")]
    return {"uniform" if "uniform" in name else "dense": name for name in names}


def told(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "cost.json").read_text())["measured"]
    return found


def test_costs_of_a_dense_and_of_a_cut_run(lab: Lab) -> None:
    names = cells(lab)
    shown = lab("time", names["dense"], names["uniform"], "--device", "cpu")
    assert shown.code == 0, shown
    assert "uniform 50" in shown.out  # as a board names the row
    assert "classify: one image" in shown.out
    (entry,) = told(lab.folder / "runs" / names["uniform"])
    assert entry["precision"] == "fp32"
    assert entry["threads"] == torch.get_num_threads()
    assert entry["torch"] == torch.__version__
    latency = entry["latency_ms"]
    assert 0 < latency["q25"] <= latency["p50"] <= latency["q75"] <= latency["p95"]
    assert entry["throughput"]["batch"] in (1, 2, 4)
    assert entry["memory_mb"]["batch_1"] > 0
    assert (lab.folder / "runs" / names["dense"] / "cost.json").is_file()


def test_other_precisions_are_kept_and_the_same_one_is_replaced(lab: Lab) -> None:
    name = cells(lab)["dense"]
    for precision in ("fp32", "bf16", "fp32"):
        assert lab("time", name, "--device", "cpu", "--precision", precision).code == 0
    assert [entry["precision"] for entry in told(lab.folder / "runs" / name)] == ["bf16", "fp32"]


def test_the_model_that_is_timed_is_the_one_that_was_evaluated(lab: Lab) -> None:
    """By its parameters: the record's count."""
    for name in cells(lab).values():
        folder = lab.folder / "runs" / name
        record = read_record(folder / "result.json")
        model = measured.open_run(folder, record)
        assert sum(p.numel() for p in model.net.parameters()) == record.parameters.total


def test_other_weights_under_the_old_name_are_refused(lab: Lab) -> None:
    name = cells(lab)["dense"]
    for file in lab.weights.iterdir():
        file.unlink()
    lab.weights.rmdir()
    make_weights(lab.weights, seed=1)
    assert "are not the weights" in lab.refused("time", name, "--device", "cpu")


def test_what_is_refused(lab: Lab) -> None:
    assert "there is no run 'nothing' in runs" in lab.refused("time", "nothing")
    assert "torch finds no such device here" in lab.refused("time", "nothing", "--device", "tpu")
    assert "should be fp32 or bf16" in lab.refused("time", "nothing", "--precision", "fp16")


def test_two_writers_keep_both(lab: Lab) -> None:
    """Eight threads with another thread count each: none is lost."""
    folder = lab.folder / "runs" / cells(lab)["dense"]
    record = read_record(folder / "result.json")
    base = {"device": "d", "torch": "t", "precision": "fp32", "compiled": False}
    work = [
        threading.Thread(target=measured.keep, args=(folder / "cost.json", record, "classify", {**base, "threads": n}))
        for n in range(8)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert [entry["threads"] for entry in told(folder)] == list(range(8))


class Clock:
    """perf_counter for steps that take what `seconds` says of a batch."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "batch", "ended"),
    [
        ({1: 1.0, 2: 1.0, 4: 1.0, 8: 2.0}, 4, "gain"),  # saturated at 4
        ({1: 1.0, 2: 1.0, 4: None}, 2, "memory"),
        ({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0, 16: 1.0}, 16, "size"),
    ],
)
def test_the_batch_is_doubled_until_it_gains_nothing(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float | None], batch: int, ended: str
) -> None:
    """Of made-up times: samples a second at the best batch, worked out by hand."""
    monkeypatch.setattr(timing, "LARGEST", 16)

    def timed(model: Any, capability: str, count: int, how: How, patience: Patience) -> tuple[list[float], float]:
        if seconds[count] is None:
            raise RunFailed("out of memory")
        return [float(seconds[count] or 0)] * 3, 1.0

    monkeypatch.setattr(timing, "_timed", timed)
    found = timing._saturated(None, "classify", How(torch.device("cpu")), None, lambda what, done, total: None)  # type: ignore[arg-type]
    assert (found["batch"], found["ended_by"]) == (batch, ended)
    assert found["per_second"] == batch / float(seconds[batch] or 0)


def test_one_sample_that_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunFailed, match="out of memory"), timing._refusing_when_full(torch.device("cpu")):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
    with pytest.raises(RuntimeError, match="shapes"), timing._refusing_when_full(torch.device("cpu")):
        raise RuntimeError("shapes")


def test_repeats_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow step is taken `least` times, a quick one until the seconds are over, at most `most` times."""
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", clock)

    def step_of(seconds: float) -> int:
        def step() -> None:
            clock.now += seconds

        return len(timing._repeated(step, Patience(3, 20, 1.0)))

    assert (step_of(5.0), step_of(0.125), step_of(0.001)) == (3, 8, 20)
