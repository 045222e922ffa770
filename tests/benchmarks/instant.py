"""Verbs that compute nothing, beside `import torch`: processor seconds and resident memory, best of several runs.

python -m tests.benchmarks.instant [TIMES]       the first call of each verb resolves its words and is not measured
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

CELL = ("method=magnitude", "task=imagenet")
VERBS = (
    ("run", *CELL), ("run", *CELL, "--plan"), ("sweep", "--file", "mini", "--plan"), ("status", "--file", "mini"),
    ("status",), ("table", "task=imagenet"),
    ("compare", "dense", "upop@0.5", "task=vqav2"), ("list",), ("help", "task=vqav2"),
)  # fmt: skip


def measured(command: list[str], folder: Path, times: int) -> tuple[float, float]:
    """(processor seconds, MB resident) of the best of `times` runs."""
    best = (float("inf"), float("inf"))
    for _ in range(times):
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        usage = os.wait4(process.pid, 0)[2]
        best = min(best, (usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024))
    return best


def main() -> None:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch, memory = measured([sys.executable, "-c", "import torch"], folder, times)
        print(f"{'import torch':<34} {torch:6.2f} s  {memory:5.0f} MB")
        for verb in VERBS:
            command = [sys.executable, "-m", "vlbench", *verb]
            subprocess.run(command, cwd=folder, capture_output=True, check=True)
            seconds, memory = measured(command, folder, times)
            print(f"{' '.join(verb):<34} {seconds:6.2f} s  {memory:5.0f} MB  {seconds / torch:.2f} of import torch")


if __name__ == "__main__":
    main()
