"""Run several cells in one process: cells.py RUNS '[[WORD, ...], ...]'. The leading worker prints their ids."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

from vlbench.cli.cells import run
from vlbench.machine.workers import world


def main() -> None:
    ids = []
    for words in json.loads(sys.argv[2]):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            run(words, Path(sys.argv[1]), plan=False, json=True, checkpoint_every=15.0)
        ids += [json.loads(out.getvalue())["cell"]] if world().leads else []
    if world().leads:
        print(json.dumps(ids))


main()
