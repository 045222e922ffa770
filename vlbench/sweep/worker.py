"""A process that runs the cells it is given: `python -m vlbench.sweep.worker`, started by process.py.

Each line of its input is one cell, each line of its output says how it ended. The end of its input is the order to
stop: the cell at work is left where it is, and resumes. So it never outlives a killed sweep.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

from ..errors import RunFailed, UserError
from ..machine.stopping import listen
from .executor import incomplete


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    faulthandler.enable(all_threads=False)
    # A shell starts what it puts into the background with SIGINT ignored, which is inherited: the order to stop would
    # go unheard, and the cell would keep its lease.
    listen(signal.SIGINT)  # what is being trained is saved at its next step
    # Slurm sends these to every process of a job that it takes the machine from. Our parent hears them too, and closes
    # our input. (Handlers, and not SIG_IGN: that would be inherited by the programs that a cell starts.)
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda *_: None)
    requests: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    try:
        while (request := requests.get()) is not None:
            answer = _answer(request)
            print(json.dumps(answer), file=answers, flush=True)
        _leave(0)
    except KeyboardInterrupt:
        _leave(130)
    except BrokenPipeError:  # who asked is gone
        _leave(1)


def _listen(requests: SimpleQueue[dict[str, Any] | None]) -> None:
    """Requests as they come. At the end of the input the main thread is interrupted, whatever it does."""
    for line in sys.stdin:
        requests.put(json.loads(line))
    requests.put(None)
    os.kill(os.getpid(), signal.SIGINT)


def _leave(code: int) -> None:
    """Without waiting for threads that decode images."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _answer(request: dict[str, Any]) -> dict[str, str]:
    with Path(request["log"]).open("a", encoding="utf-8") as log:
        _print_into(log)
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {request['cell']}", flush=True)
        state, reason = _attempt(request)
        print(f"{state}: {' '.join(reason.splitlines())}" if reason else state, flush=True)  # one line: it is read
    return {"state": state, "reason": reason}


def _print_into(log: TextIO) -> None:
    """All that is printed, by libraries and by crashes too."""
    sys.stdout.flush()
    sys.stderr.flush()
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)


def _attempt(request: dict[str, Any]) -> tuple[str, str]:
    """How the cell ended, and why. Everything but an interrupt is told: the next cell must have its turn."""
    from ..run.runner import Uploaded

    try:
        return _run(request)
    except Uploaded as told:
        return "upload", f"{told.file} is ready for the server"
    except (UserError, RunFailed) as error:
        return "failed", str(error)
    except Exception as error:
        traceback.print_exc()
        return "failed", f"{type(error).__name__}: {(str(error).strip() or 'no text').splitlines()[0]}"


def _run(request: dict[str, Any]) -> tuple[str, str]:
    from ..cell.cell import open_cell
    from ..cell.resolve import resolve
    from ..machine.ui import Screen
    from ..run.runner import Runner

    cell = open_cell(resolve(request["words"]))
    cell = cell.dense() if request["baseline"] else cell
    if cell.id != request["cell"]:
        raise UserError(
            f"these words mean another cell now, {cell.id}: a method's file, the data or the weights changed since "
            "the sweep began. Give the same command again."
        )
    runs = Path(request["runs"])
    with Screen() as screen:
        record = Runner(runs, screen).cell(cell)
    return ("done", "") if record.complete else ("failed", incomplete(runs, record.cell, record.flags))


if __name__ == "__main__":
    main()
