"""Workers of one cell as threads: quick, and in one process."""

from __future__ import annotations

import threading
from typing import Any

from vlbench.launch.world import World


class Table:
    """A key-value store for threads, like torchrun's for processes."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        self.changed = threading.Condition()

    def set(self, key: str, value: str) -> None:
        with self.changed:
            self.values[key] = value
            self.changed.notify_all()

    def get(self, key: str) -> bytes:
        with self.changed:
            assert self.changed.wait_for(lambda: key in self.values, timeout=20), f"nobody ever said {key}"
            return self.values[key].encode()

    def add(self, key: str, amount: int) -> int:
        with self.changed:
            self.counts[key] = self.counts.get(key, 0) + amount
            return self.counts[key]


def together(size: int, work: Any) -> list[Any]:
    """work(world) in `size` threads; what each gave."""
    table, found = Table(), [None] * size

    def one(rank: int) -> None:
        found[rank] = work(World(rank, size, table))

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    return found
