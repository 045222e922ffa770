"""A page of 2,000 rows: its size, and how long a browser takes to open, to sort and to filter it.

    python tests/benchmarks/pages.py [ROWS]

The rows are synthetic, with options and digests as long as real ones: all in one board, which is the worst case, and
over the boards of seven tasks. Needs chromium; times are of this machine, beside those of an empty page there.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.leaderboard.factory import record
from tests.pages.browser import CHROMIUM, Browser
from vlbench.leaderboard.published import load_published
from vlbench.leaderboard.rows import rows_of
from vlbench.pages.board import page
from vlbench.records.record import Record

TASKS = ("nlvr2", "vqav2", "coco_caption", "coco_retrieval", "flickr30k_retrieval", "imagenet", "ade20k")
REPEATS = 5
# From the start of the navigation until the page has been painted once with all its rows.
OPENED = "new Promise(r => requestAnimationFrame(() => setTimeout(() => r(performance.now()))))"
TIMED = """(async () => {{ const start = performance.now(); {action};
await new Promise(r => requestAnimationFrame(() => setTimeout(r))); return performance.now() - start; }})()"""
SORT = "document.querySelector('#table thead th:nth-child(6) button').click()"
FILTER = (
    "const e = document.getElementById('search'); e.value = e.value ? '' : 'upop'; e.dispatchEvent(new Event('input'))"
)


def made(number: int, tasks: tuple[str, ...]) -> list[Record]:
    """A dense model a task, and rows of four methods."""
    dense = [record(task=task) for task in tasks]
    kinds = {"magnitude": "unstructured", "wanda": "2:4", "upop": "structured", "uniform": "structured"}
    bases = [
        record(
            name, sparsity=0.5, accuracy=0.7, pattern=pattern, trained=pattern == "structured", flags=["contaminated"]
        )
        for name, pattern in kinds.items()
    ]
    found = []
    for i in range(number - len(dense)):
        base = bases[i % 4]
        link = base.chain[0].model_copy(update={"options": {"steps": 100 + i, "learning_rate": i / 7e5}})
        size = base.parameters.model_copy(update={"nonzero": 1_000_000 + 400 * i % 900_000})
        changed = {"cell": f"{base.method}-{i}", "chain": [link], "task": tasks[i % len(tasks)], "parameters": size}
        found.append(base.model_copy(update=changed))
    return [*dense, *found]


def measure(browser: Browser, file: Path) -> dict[str, float]:
    """Medians of milliseconds."""
    opened = []
    for _ in range(REPEATS):
        browser.open("about:blank")
        browser.open(file)
        opened.append(float(browser.run(OPENED)))
    told = {"open": statistics.median(opened)}
    for name, action in (("sort", SORT), ("filter", FILTER)) if file.stem != "empty" else ():
        told[name] = statistics.median(browser.run(TIMED.format(action=action)) for _ in range(REPEATS))
    assert browser.errors == [], browser.errors
    return told


def main(number: int) -> None:
    """Make both pages, open them, print what it took."""
    if CHROMIUM is None:
        sys.exit("needs chromium (apt-get install chromium)")
    browser = Browser()
    browser.window(1280)
    with tempfile.TemporaryDirectory() as name:
        empty = Path(name) / "empty.html"
        empty.write_text("<!doctype html><title>empty</title>")
        floor = measure(browser, empty)["open"]
        for title, tasks in (("one board", ("vqav2",)), ("seven boards", TASKS)):
            pairs = rows_of(made(number, tasks))
            start = time.perf_counter()
            text = page("mini", pairs, load_published())
            seconds = time.perf_counter() - start
            file = Path(name) / "index.html"
            file.write_text(text, encoding="utf-8")
            told = ", ".join(f"{what} {ms:.0f} ms" for what, ms in measure(browser, file).items())
            print(
                f"{len(pairs):,} rows, {title}: {len(text.encode()) / 1e6:.2f} MB, made in {seconds:.1f} s; {told} "
                f"(an empty page opens in {floor:.0f} ms)"
            )
    browser.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
