"""Cells as Ray tasks: on this machine, and on two nodes of which one is lost. Stub workers without torch."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.sweep.stub import STUB
from tests.waiting import until
from vlbench.errors import UserError
from vlbench.sweep import process, ray_engine
from vlbench.sweep.engines import Engine
from vlbench.sweep.executor import Outcome, Work, log_file

SMALL = 80 * 2**20  # bytes of a node's object store


@pytest.fixture(autouse=True)
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "ARGUMENTS", ("-c", STUB))
    monkeypatch.setenv("VLBENCH_TEST", "travels")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def ray() -> Iterator[Any]:
    module = pytest.importorskip("ray", reason="needs Ray: pip install 'vlbench[ray]'")
    yield module
    module.shutdown()


@pytest.fixture
def cluster(ray: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head with a core, to which nodes can be added."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": SMALL})
    yield made
    ray.shutdown()
    made.shutdown()


def run(executor: Any, **cells: str) -> dict[str, Outcome]:
    executor.submit(Work(name, {"do": do}) for name, do in cells.items())
    try:
        return {outcome.cell: outcome for outcome in executor.outcomes()}
    finally:
        executor.close()


def tries(cell: str) -> list[str]:
    file = Path("runs") / cell / "tries"
    return file.read_text().splitlines() if file.exists() else []


# Without Ray ---------------------------------------------------------------------------------------------------------


def test_without_ray_the_command_to_install_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'vlbench\[ray\]'"):
        Engine("ray").start(Path("runs"), print)
    assert not Path("runs").exists()


def test_where_no_cluster_listens_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="needs Ray")
    for address, why in (("127.0.0.1:1", "no Ray cluster at --address 127.0.0.1:1"), ("somewhere", "HOST:PORT")):
        with pytest.raises(UserError, match=why):
            Engine("ray", address=address).start(Path("runs"), print)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("nodes", "asked", "gpus", "cpus", "slots"),
    [
        ([{"CPU": 8.0}], None, 0, 1, 8),
        ([{"CPU": 8.0, "GPU": 2.0}], None, 1, 4, 2),
        ([{"CPU": 8.0, "GPU": 2.0}], 0.5, 0.5, 2, 4),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 64.0}], 1, 1, 4, 2),
        ([{"CPU": 2.0, "GPU": 4.0}], 1, 1, 0.5, 4),
    ],
)
def test_what_a_cell_takes(
    nodes: list[dict[str, float]], asked: float | None, gpus: float, cpus: float, slots: int
) -> None:
    assert ray_engine._gpus_per_cell(nodes, asked) == gpus
    assert ray_engine._cpus_per_cell(nodes, gpus) == cpus
    assert ray_engine._slots(nodes, cpus, gpus) == slots


def test_more_gpus_than_any_node_has_are_refused() -> None:
    """Four in all, and no cell can have three."""
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}]
    with pytest.raises(UserError, match="a cell needs 3 GPUs and no node of the cluster has more than 2"):
        ray_engine._gpus_per_cell(nodes, 3)
    with pytest.raises(UserError, match="a cell needs 1 GPU and the cluster has none"):
        ray_engine._gpus_per_cell([{"CPU": 8.0}], 1)
    with pytest.raises(UserError, match="whole number"):
        ray_engine._gpus_per_cell(nodes, 1.5)


# With it -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_cells_on_this_machine(ray: Any) -> None:
    """Deaths are tried again, failures are believed, processes are kept, and closing ends the running cell."""
    runs = Path("runs")
    executor = Engine("ray", jobs=1, gpus_per_cell=0).start(runs, lambda: None)
    again = {f"again-{number}": "go" for number in range(8)}
    cells = {"a": "go", "b": "fail", "c": "die 2", "d": "die 9", **again}
    executor.submit(Work(name, {"do": do}) for name, do in cells.items())
    found = {outcome.cell: outcome for outcome in executor.outcomes()}
    assert {cell: outcome.state for cell, outcome in found.items()} == {
        **dict.fromkeys(again, "done"), "a": "done", "b": "failed", "c": "done", "d": "failed",
    }  # fmt: skip
    assert found["b"].reason == "a mistake"
    assert [len(tries(cell)) for cell in "abcd"] == [1, 1, 3, 3]
    assert tries("a")[0].split()[-1] == "travels"
    assert "signal 9" in found["d"].reason
    assert "in each of 3 attempts" in log_file(runs, "d").read_text().splitlines()[-1]
    assert len({found[cell].reason for cell in again}) < len(again), "torch would be imported anew for each cell"

    executor.submit([Work("slow", {"do": "wait"}), Work("next", {"do": "go"})])
    until(lambda: tries("slow"))
    executor.close()
    pid = tries("slow")[0].split()[0]
    until(lambda: not Path(f"/proc/{pid}").exists())
    # Told to stop, or killed by Ray, which waits for nobody on a busy machine: either way it resumes.
    assert not Path("runs/slow/result.json").exists()
    assert not tries("next")
    assert not Path("runs/next").exists()
    assert not ray.is_initialized()


@pytest.mark.slow
def test_cells_with_a_gpu_each(ray: Any) -> None:
    """Two that only Ray believes in. A process ends with its cell, or its memory would be missing for the next one."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 2, "object_store_memory": SMALL})
    try:
        with pytest.raises(UserError, match="no node of the cluster has more than 2"):
            Engine("ray", address=made.address, gpus_per_cell=3).start(Path("runs"), print)
        with pytest.raises(UserError, match="no node of the cluster has more than 2"):
            Engine("ray", address=made.address, gpus_per_cell=3).refuse_unfit()
        Engine("ray", address=made.address, gpus_per_cell=2).refuse_unfit()
        assert not ray.is_initialized()
        assert not Path("runs").exists()
        executor = Engine("ray", address=made.address).start(Path("runs"), lambda: None)
        assert (executor.gpus, executor.cpus, executor.slots) == (1, 2, 2)
        found = run(executor, a="meet b", b="meet a", c="go")
        assert {outcome.state for outcome in found.values()} == {"done"}
        assert {tries(cell)[0].split()[1] for cell in "ab"} == {"0", "1"}, "both have one GPU"
        assert len({outcome.reason for outcome in found.values()}) == 3, "a process was kept"
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.mark.slow
def test_a_node_is_lost_half_way(cluster: Any) -> None:
    """Of 24 cells on two nodes of one core, the second is killed while it has one: 24 results, none written twice.

    Where twelve are done both nodes hold their cells, so that the second has one when it is lost, however fast it is.
    """
    node = cluster.add_node(num_cpus=1, object_store_memory=SMALL, env_vars={"NODE": "second"})
    executor = Engine("ray", address=cluster.address).start(Path("runs"), lambda: None)
    cells = {f"cell-{number}": "half 12" for number in range(24)}
    lost: list[str] = []

    def lose() -> None:
        until(lambda: held_by("second"))
        cluster.remove_node(node, allow_graceful=False)
        lost.extend(held_by("second"))
        Path("lost").touch()

    thread = threading.Thread(target=lose)
    thread.start()
    found = run(executor, **cells)
    thread.join()
    (cell,) = lost
    assert {outcome.state for outcome in found.values()} == {"done"}, found
    assert sorted(found) == sorted(cells)
    results = [json.loads(file.read_text())["cell"] for file in Path("runs").glob("*/result.json")]
    assert sorted(results) == sorted(cells)
    assert ["second" in line for line in tries(cell)] == [True, False], "it was not run again on the other node"
    assert sum(len(tries(cell)) for cell in cells) == len(cells) + 1, "a cell that was not lost was run twice"


def held_by(node: str) -> list[str]:
    """Cells that wait on a node."""
    return [file.parent.name for file in Path("runs").glob("*/held") if file.read_text() == node]
