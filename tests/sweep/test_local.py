"""Worker processes: what one that dies, or is stopped, does to the others. The workers here are stubs without torch."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.waiting import until
from vlbench.sweep import local, process
from vlbench.sweep.executor import Outcome, Work, log_file
from vlbench.sweep.local import LocalExecutor, cores
from vlbench.sweep.state import Runs

STUB = """
import json, os, signal, sys, time
from pathlib import Path
for line in sys.stdin:
    request = json.loads(line)
    do = request["words"]["do"]
    if do == "exit":
        print("last words", file=sys.stderr, flush=True)
        os._exit(3)
    if do in ("third", "fail"):
        with Path(do).open("a") as stream:
            stream.write("x")
        if do == "third" and Path(do).stat().st_size < 3:
            os._exit(1)
        if do == "fail":
            print(json.dumps({"state": "failed", "reason": str(Path(do).stat().st_size)}), flush=True)
            continue
    if do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "wait":
        Path("begun").touch()
        sys.stdin.read()
        Path("left").touch()
        break
    if do.startswith("meet"):
        Path(do).touch()
        end = time.monotonic() + 300
        while not (Path("meet-1").exists() and Path("meet-2").exists()):
            assert time.monotonic() < end
            time.sleep(0.01)
    said = json.dumps([os.getpid(), os.environ["OMP_NUM_THREADS"], os.environ.get("CUDA_VISIBLE_DEVICES")])
    print(json.dumps({"state": "done", "reason": said}), flush=True)
"""


@pytest.fixture(autouse=True)
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "ARGUMENTS", ("-c", STUB))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def run(executor: LocalExecutor, *what: str) -> dict[str, Outcome]:
    executor.submit(Work(f"{number}-{do}", {"do": do}) for number, do in enumerate(what))
    try:
        return {outcome.cell: outcome for outcome in executor.outcomes()}
    finally:
        executor.close()


def test_a_worker_that_dies_fails_its_cell_and_no_other(tmp_path: Path) -> None:
    found = run(LocalExecutor(tmp_path, 1), "go", "exit", "go", "kill", "go")
    assert [found[name].state for name in sorted(found)] == ["done", "failed", "done", "failed", "done"]
    assert "exit code 3 without a word, in each of 3 attempts" in found["1-exit"].reason
    assert "signal 9" in found["3-kill"].reason
    assert Runs.read(tmp_path).reason("3-kill") == found["3-kill"].reason, "`vlbench status` is not told"
    pids = [json.loads(found[f"{n}-go"].reason)[0] for n in (0, 2, 4)]
    assert len(set(pids)) == 3


def test_one_worker_runs_many_cells(tmp_path: Path) -> None:
    found = run(LocalExecutor(tmp_path, 1), "go", "go", "go")
    assert len({json.loads(outcome.reason)[0] for outcome in found.values()}) == 1


def test_what_a_new_worker_says_before_its_cell_is_in_the_log(tmp_path: Path) -> None:
    run(LocalExecutor(tmp_path, 1), "exit")
    assert log_file(tmp_path, "0-exit").read_text().startswith("last words\nlast words\nlast words\nfailed: ")


def test_a_cell_whose_worker_dies_is_tried_again(tmp_path: Path) -> None:
    """Twice for nothing, as where a neighbour takes the memory; and one that says why it fails is believed."""
    found = run(LocalExecutor(tmp_path, 1), "third", "fail")
    assert found["0-third"].state == "done"
    assert found["1-fail"].reason == "1"


def test_jobs_run_side_by_side_with_a_device_each_and_their_share_of_the_cores(tmp_path: Path) -> None:
    """Each of the two waits for the other: one after the other they would never end."""
    found = run(LocalExecutor(tmp_path, 2, ["5", "GPU-x"]), "meet-1", "meet-2")
    told = [json.loads(outcome.reason) for outcome in found.values()]
    assert {device for _, _, device in told} == {"5", "GPU-x"}
    assert {threads for _, threads, _ in told} == {str(max(1, cores() // 2))}


def test_the_users_number_of_threads_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    found = run(LocalExecutor(tmp_path, 2), "go")
    assert json.loads(found["0-go"].reason)[1:] == ["7", None]


def test_no_more_workers_than_cells(tmp_path: Path) -> None:
    executor = LocalExecutor(tmp_path, 50)
    run(executor, "go", "go")
    assert len(executor._slots) == 2


def test_closing_stops_a_running_cell(tmp_path: Path) -> None:
    """The stub touches a file when its input ends, which is the order to stop."""
    executor = LocalExecutor(tmp_path, 1)
    executor.submit([Work("slow", {"do": "wait"}), Work("next", {"do": "go"})])
    until(Path("begun").exists)  # a cell that no process has begun leaves nothing
    assert executor.running() == ["slow"]
    executor.close()
    assert Path("left").exists()
    process = executor._slots[0].worker._process
    assert process is None or process.poll() is not None


def test_the_devices_are_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    for told, wanted in (("2, 3", ["2", "3"]), ("", []), ("-1", [])):
        monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", told)
        assert local.visible_devices() == wanted
