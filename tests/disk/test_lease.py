"""One worker a cell: who is dead, who is alive, and nobody's lease is taken but a dead one's."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.waiting import LIMIT, until
from vlbench.disk import lease as module
from vlbench.disk.lease import Holder, held, lease
from vlbench.errors import UserError


def never() -> bool:
    return False


def quiet(text: str) -> None:
    """Nobody listens."""


def written(folder: Path, **changes: object) -> Path:
    """A lease of this very process, but for `changes`."""
    me = {"machine": module._machine(), "pid": os.getpid(), "started": module._started(os.getpid()), "token": "t"}
    file = folder / "lease.json"
    file.write_text(json.dumps({**me, **changes}))
    return file


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "3600"]) as process:
        yield process
        process.kill()


@dataclass
class Clock:
    """The clocks of whoever waits: they go on where it sleeps, and nowhere else."""

    passed: float = 0.0
    at_each_look: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.passed += seconds
        self.at_each_look()

    def monotonic(self) -> float:
        return self.passed

    def time(self) -> float:
        return NOW + self.passed


NOW = time.time()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module, "time", found)
    return found


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT", 0.01)


def test_it_is_held_and_given_back(tmp_path: Path) -> None:
    with lease(tmp_path / "cell", never, quiet) as mine:
        assert mine
        assert json.loads((tmp_path / "cell" / "lease.json").read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []  # not even an empty folder


@pytest.mark.parametrize("wrote", [True, False])
def test_it_is_given_back_after_a_failure(tmp_path: Path, wrote: bool) -> None:
    def work() -> None:
        if wrote:
            (tmp_path / "cell" / "cell.json").write_text("")
        raise KeyError

    with pytest.raises(KeyError), lease(tmp_path / "cell", never, quiet):
        work()
    assert [p.name for p in tmp_path.rglob("*")] == (["cell", "cell.json"] if wrote else [])


def test_a_refusal_leaves_no_folder_of_all_cells_that_was_not_there(tmp_path: Path) -> None:
    (tmp_path / "had").mkdir()
    for runs in ("had", "new"):
        with lease(tmp_path / runs / "cell", never, quiet):
            pass
    assert [p.name for p in tmp_path.rglob("*")] == ["had"]


def test_a_folder_of_all_cells_that_vanishes_while_a_cell_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir, told = Path.mkdir, list[Path]()

    def once(self: Path, *args: object, **options: object) -> None:
        if not told:
            told.append(self)
            raise FileNotFoundError(2, "No such file or directory", str(self))
        mkdir(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", once)
    with lease(tmp_path / "runs" / "cell", never, quiet) as mine:
        assert mine
        assert told


def test_a_folder_that_is_removed_meanwhile_is_no_failure(tmp_path: Path) -> None:
    with lease(tmp_path / "cell", never, quiet):
        shutil.rmtree(tmp_path / "cell")


def test_a_cell_that_another_has_finished_meanwhile_is_told(tmp_path: Path) -> None:
    with lease(tmp_path, lambda: True, quiet) as mine:
        assert not mine


def test_temporaries_of_killed_runs_are_swept(tmp_path: Path) -> None:
    (tmp_path / ".cell.json.1.tmp").write_text("")
    with lease(tmp_path, never, quiet):
        assert [p.name for p in tmp_path.iterdir()] == ["lease.json"]


def test_a_killed_holders_lease_is_taken_at_once(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], clock: Clock
) -> None:
    written(tmp_path, pid=sleeper.pid, started=module._started(sleeper.pid))
    sleeper.kill()
    sleeper.wait()
    with lease(tmp_path, never, quiet) as mine:
        assert mine
    assert clock.passed == 0


def test_a_zombie_is_dead(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    """A killed run that nobody collects, as in a container without an init."""
    written(tmp_path, pid=sleeper.pid, started=module._started(sleeper.pid))
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays uncollected
    assert module._started(sleeper.pid) == ""
    with lease(tmp_path, never, quiet) as mine:
        assert mine


def test_a_later_process_of_the_same_number_is_another(tmp_path: Path, clock: Clock) -> None:
    written(tmp_path, started="1")
    with lease(tmp_path, never, quiet) as mine:
        assert mine
    assert clock.passed == 0


def test_a_live_holders_lease_is_never_taken(tmp_path: Path, sleeper: subprocess.Popen[bytes], clock: Clock) -> None:
    """Not even where it gives no sign of life, as a stopped process does; here until it has finished the cell."""
    file = written(tmp_path, pid=sleeper.pid, started=module._started(sleeper.pid))
    before, told = file.read_text(), list[str]()
    with lease(tmp_path, lambda: clock.passed > 2 * module.OLD, told.append) as mine:
        assert not mine
    assert file.read_text() == before
    (sentence,) = told
    assert f"another vlbench works on this cell (process {sleeper.pid} on " in sentence


def test_another_machines_lease_lasts_while_its_heart_beats(tmp_path: Path, clock: Clock) -> None:
    """By its own clock, which goes ten minutes behind ours; then it falls silent."""
    file = written(tmp_path, machine="elsewhere", pid=1)

    def beat() -> None:
        if clock.passed % module.HEARTBEAT < module.POLL:
            os.utime(file, (0, clock.time() - 600))

    clock.at_each_look = beat
    with lease(tmp_path, lambda: clock.passed > 3 * module.EXPIRES, quiet) as mine:
        assert not mine
    clock.at_each_look, before = lambda: None, clock.passed
    with lease(tmp_path, never, quiet) as mine:
        assert mine
    assert module.EXPIRES < clock.passed - before <= module.EXPIRES + 2 * module.POLL


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"machine": 3, "pid": "x"}'])
def test_a_damaged_lease_lasts_until_it_has_been_silent(tmp_path: Path, text: str, clock: Clock) -> None:
    (tmp_path / "lease.json").write_text(text)
    with lease(tmp_path, never, quiet) as mine:
        assert mine
    assert module.EXPIRES < clock.passed <= module.EXPIRES + 2 * module.POLL


def test_yesterdays_lease_of_another_machine_is_watched_for_two_heartbeats(tmp_path: Path, clock: Clock) -> None:
    """Clocks may differ by hours, so that its age alone says nothing."""
    file = written(tmp_path, machine="elsewhere")
    os.utime(file, (0, clock.time() - 2 * module.OLD))
    with lease(tmp_path, never, quiet) as mine:
        assert mine
    assert 2 * module.HEARTBEAT < clock.passed <= 2 * module.HEARTBEAT + 2 * module.POLL


def test_only_the_lease_that_was_found_dead_is_removed(tmp_path: Path) -> None:
    """Of two who find it dead, the second comes when the first already holds its own."""
    dead = written(tmp_path, pid=0).read_text()
    live = written(tmp_path, token="new").read_text()
    module._remove(tmp_path / "lease.json", dead)
    assert (tmp_path / "lease.json").read_text() == live


def test_looking_and_removing_is_one_step(tmp_path: Path) -> None:
    """While another is between the two, nobody else begins."""
    file = written(tmp_path)
    with module._alone(tmp_path):
        second = threading.Thread(target=module._remove, args=(file, file.read_text()))
        second.start()
        second.join(0.2)
        assert file.exists()
    second.join()
    assert not file.exists()


def beaten(file: Path, mine: str, times: int) -> bool:
    """Whether so many heartbeats find the lease lost."""
    beats, lost = iter([*[False] * times, True]), threading.Event()
    module._beat(file, mine, cast(threading.Event, SimpleNamespace(wait=lambda seconds: next(beats))), lost)
    return lost.is_set()


def test_a_lease_that_was_lost_is_told_and_neither_kept_warm_nor_removed(tmp_path: Path) -> None:
    """A machine that slept for minutes finds another at its cell."""
    with lease(tmp_path, never, quiet):
        file = tmp_path / "lease.json"
        mine = file.read_text()
        assert not beaten(file, mine, 2)
        written(tmp_path, token="another")
        os.utime(file, (1, 1))
        assert beaten(file, mine, 1)
        assert file.stat().st_mtime == 1
    assert file.exists()


def test_between_two_holders_a_lease_is_not_there_and_is_looked_for_again(tmp_path: Path) -> None:
    """Who takes it over removes it first; the heart must not stop there."""
    looks = iter([None, None, "another"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_look", lambda file: (next(looks), 0.0))
        assert beaten(tmp_path / "lease.json", "mine", 3)
    assert not beaten(tmp_path / "lease.json", "mine", 3)


@pytest.mark.usefixtures("hasty")
def test_the_heart_beats(tmp_path: Path) -> None:
    with lease(tmp_path, never, quiet):
        file = tmp_path / "lease.json"
        os.utime(file, (1, 1))
        until(lambda: file.stat().st_mtime > 1)


def test_a_file_system_without_links_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with lease(tmp_path, never, quiet) as mine:
        assert mine
        assert module._claim(tmp_path / "lease.json") is None


def test_an_unwritable_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").write_text("")
    with (
        pytest.raises(UserError, match=r"cannot write in .*runs.* Choose another folder"),
        lease(tmp_path / "runs" / "cell", never, quiet),
    ):
        pass

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", read_only)
    with pytest.raises(UserError, match="Read-only file system"), lease(tmp_path / "x", never, quiet):
        pass


def test_who_holds_a_cell(tmp_path: Path) -> None:
    """Of this machine's processes it is known. Of another's there are signs of life, by a clock that may be off."""
    assert held(tmp_path) is None
    with lease(tmp_path / "cell", never, quiet):
        holder = held(tmp_path / "cell")
        os.utime(tmp_path / "cell" / "lease.json", (1, 1))
        assert held(tmp_path / "cell") == holder, "its process lives, whatever the clock says"
    assert holder is not None
    assert (holder.pid, holder.host) == (os.getpid(), socket.gethostname())
    assert holder.since == pytest.approx(time.time(), abs=60)
    written(tmp_path, started="long ago")
    assert held(tmp_path) is None, "another process has its number"
    file = written(tmp_path, machine="elsewhere boot ns", pid=7)
    assert held(tmp_path) == Holder("elsewhere", 7, None)
    for age, there in ((module.EXPIRES / 2, True), (-module.EXPIRES / 2, True), (1e5, False), (-1e5, False)):
        os.utime(file, (0, time.time() - age))
        assert (held(tmp_path) is not None) == there
    file.write_text("[1]")
    assert held(tmp_path) == Holder("unknown", None, None)


WORKER = """
import os, sys, time
from pathlib import Path
from vlbench.disk import lease as module
module.POLL = 0.002
folder = Path(sys.argv[1])
while not (folder / "go").exists():
    time.sleep(0.001)
for _ in range(10):
    with module.lease(folder / "cell", lambda: False, lambda text: None) as mine:
        os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))  # raises where two are inside
        time.sleep(0.001)
        os.unlink(folder / "inside")
        if _ == 9:
            os._exit(0)  # dies as the holder: the others take over
"""


def test_of_many_who_take_over_one_is_inside_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "cell").mkdir()
    written(tmp_path / "cell", started="long ago")
    crowd = [subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path)]) for _ in range(4)]
    (tmp_path / "go").write_text("")
    assert [process.wait(timeout=LIMIT) for process in crowd] == [0] * 4


def test_a_folder_that_vanishes_while_it_is_made_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mkdir says "exists", and a holder that wrote nothing removes the folder before mkdir looks at it."""
    mkdir, told = Path.mkdir, list[Path]()

    def once(self: Path, *args: object, **options: object) -> None:
        if not told:
            told.append(self)
            raise FileExistsError(17, "File exists", str(self))
        mkdir(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", once)
    with lease(tmp_path / "cell", lambda: False, print) as mine:
        assert mine
    assert told
