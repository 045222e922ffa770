"""A warm process that has imported everything and computed nothing: it forks a child for every life of the command.

A start of the real command takes seconds, and would be killed in its imports most of the time. A child runs
`vlbench.cli.main` with the words it is given, and whoever asked hears how it ended and what it was at.
`python tests/faults/server.py`: orders and answers are lines of JSON (lives.py asks).
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import mmap
import os
import random
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STEPS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.utime", "open"}
NEEDS_ROOM = {"os.rename", "os.mkdir", "os.link", "open"}  # what a full or read-only disk refuses
NOBODY = 65534
STOPS_AT: list[Any] = []  # of a life: the stage and the step at which SIGTERM comes
BOARD = mmap.mmap(-1, 128)  # shared with the children: what a life is at, and how many steps on disk it has made


def chalk(text: str) -> None:
    BOARD[:64] = text.encode()[:64].ljust(64)


def chalked() -> str:
    return BOARD[:64].decode(errors="replace").strip()


def count(number: int) -> None:
    BOARD[64:80] = str(number).encode().ljust(16)


def prepare() -> None:
    """Import what a life would import, with marks at its stages."""
    from vlbench.disk import storage

    # Before others take these by name.
    storage.write_bytes = marked(storage.write_bytes)
    storage.remove_folder = marked(storage.remove_folder)
    storage.new_folder = marked_block(storage.new_folder)
    import torch
    import torch.utils.flop_counter

    torch.set_num_threads(1)
    from vlbench import cli  # noqa: F401
    from vlbench.leaderboard import local as board  # noqa: F401
    from vlbench.machine import ui
    from vlbench.plugins.table import table
    from vlbench.run import runner as run  # noqa: F401

    for kind, names in (("models", ["deit-mini"]), ("tasks", ["imagenet"])):
        for name in names:
            table(kind).get(name).load()  # type: ignore[arg-type]
    for name in ("dense", "upop", "finetune", "magnitude", "uniform", "wanda"):
        importlib.import_module(table("methods").get(name).module)
    plain = ui.Screen.progress

    def progress(self: Any, what: str, done: int, total: int, text: str = "") -> None:
        chalk(what)
        plain(self, what, done, total, text)
        if [what, done] == STOPS_AT:
            os.kill(os.getpid(), signal.SIGTERM)

    ui.Screen.progress = progress  # type: ignore[method-assign]


def marked(work: Callable[..., Any]) -> Callable[..., Any]:
    def with_mark(*args: Any, **more: Any) -> Any:
        before = chalked()
        chalk("writing")
        found = work(*args, **more)
        chalk(before)
        return found

    return with_mark


def marked_block(work: Callable[..., Any]) -> Callable[..., Any]:
    @contextmanager
    def with_mark(*args: Any, **more: Any) -> Iterator[Any]:
        before = chalked()
        chalk("writing")
        with work(*args, **more) as found:
            yield found
        chalk(before)

    return with_mark


def writes(event: str, args: tuple[Any, ...]) -> bool:
    if event != "open":
        return True
    mode, flags = args[1], args[2] if len(args) > 2 else 0
    return bool(set(mode or "") & set("wax+")) or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def watch(runs: str, kill_step: int, kill_at: tuple[str, int], refuse_step: int, number: int) -> None:
    """Count the steps that change files under `runs` (or open them). SIGKILL before step `kill_step`, or before the
    n-th of a file like kill_at = (pattern, n); from step `refuse_step` on every one that needs room fails with
    `number`."""
    made = like = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal made, like
        if event in STEPS and args and str(args[0]).startswith(runs):
            made += 1
            count(made)
            like += bool(re.search(kill_at[0], str(args[0])))
            if made == kill_step or (kill_at[1] and like == kill_at[1]):
                os.kill(os.getpid(), signal.SIGKILL)
            if refuse_step and made >= refuse_step and event in NEEDS_ROOM and writes(event, args):
                raise OSError(number, os.strerror(number), str(args[0]))

    sys.addaudithook(hook)


def full_at_sync(number: int) -> None:
    """From the number-th fsync on the disk is full: what was written before it had room in memory only."""
    real, made = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal made
        made += 1
        if made >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    os.fsync = fsync


def jumping_clock(seed: int) -> None:
    """A wall clock that is set by up to a month, forwards and backwards, at random moments."""
    draw, real, state = random.Random(seed), time.time, [0.0]

    def now() -> float:
        if draw.random() < 0.2:
            state[0] = draw.uniform(-30, 30) * 86400
        return real() + state[0]

    time.time = now


def child(order: dict[str, Any]) -> int:
    """The exit code that the command's process would have."""
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.chdir(order["cwd"])
    os.environ.update(order.get("environment", {}))
    if order.get("fsize"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["fsize"], order["fsize"]))
    if order.get("nobody"):
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    if "clock" in order:
        jumping_clock(order["clock"])
    if "full_at_sync" in order:
        full_at_sync(order["full_at_sync"])
    STOPS_AT[:] = order.get("stop_at", [])
    kill_step, kill_at = order.get("kill_step", 0), order.get("kill_at", ("", 0))
    watch(order["runs"], kill_step, kill_at, order.get("refuse_step", 0), order.get("errno", errno.ENOSPC))
    sys.argv = ["vlbench", *order["words"]]
    from vlbench import cli

    try:
        cli.main()
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def begin(order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = child(order)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def end(pid: int, after: float | None, stage: str, sign: int) -> int:
    """Wait for a child, or send it `sign` after some seconds (of a stage, from its first step on) and wait then. A
    negative code is a signal."""
    if after is not None:
        while not chalked().startswith(stage) and not ended(pid):
            time.sleep(0.001)
        stop = time.monotonic() + after
        while time.monotonic() < stop and not ended(pid):
            time.sleep(0.001)
        os.kill(pid, sign)  # of a child that has ended nothing remains to hear it
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def live(order: dict[str, Any]) -> dict[str, Any]:
    chalk("start")
    count(0)
    start = time.monotonic()
    orders = order["lives"]
    pids: list[int] = []
    for one in orders:
        while not chalked().startswith(one.get("once", "")) and not all(map(ended, pids)):
            time.sleep(0.001)
        pids.append(begin(one))
    ways = [(one.get("after"), one.get("stage", ""), one.get("signal", signal.SIGKILL)) for one in orders]
    codes = [end(pid, *way) for pid, way in zip(pids, ways, strict=True)]
    return {"codes": codes, "seconds": time.monotonic() - start, "stage": chalked(), "steps": int(BOARD[64:80])}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    prepare()
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(live(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
