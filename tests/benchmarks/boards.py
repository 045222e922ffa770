"""10,000 result files into all tables: seconds (of the clock, and of the processor) and peak memory.

    python tests/benchmarks/boards.py [NUMBER]

The files are synthetic: 14 boards, 3 seeds a row, the options of a real chain, score vectors of 1,500 samples.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.leaderboard.factory import changed, record
from vlbench.publishing.regenerate import boards

SEEDS, BOARDS = 3, 14
OPTIONS = {f"option_{i}": i / 7 for i in range(20)}


def main(number: int) -> None:
    """Write the files, make the boards in memory, print what it took."""
    base = record("upop", sparsity=0.5, accuracy=0.75, pattern="structured", trained=True, options=OPTIONS)
    link = base.chain[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "mini"
        folder.mkdir()
        for i in range(number):
            row, seed = divmod(i, SEEDS)
            chain = [link.model_copy(update={"options": {**link.options, "damping": row / 1000}})]
            one = changed(base, seed=seed, task=f"task{row % BOARDS:02d}", chain=chain)
            (folder / f"cell-{i:06d}.json").write_text(one.model_dump_json(indent=1), encoding="utf-8")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start, worked = time.perf_counter(), time.process_time()
        texts = boards(Path(name))
        seconds, worked = time.perf_counter() - start, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = sum(text.count("\n") - 1 for path, text in texts.items() if path.suffix == ".csv")
    print(
        f"{number:,} results -> {lines:,} rows in {len(texts)} files: {seconds:.1f} s ({worked:.1f} s of processor), "
        f"peak {peak / 1024:.0f} MB ({before / 1024:.0f} MB before)"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
