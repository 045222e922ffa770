"""Workers of one cell as threads: quick, and in one process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor

from tests.waiting import LIMIT
from vlbench.machine.workers import World


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
            assert self.changed.wait_for(lambda: key in self.values, timeout=LIMIT), f"nobody ever said {key}"
            return self.values[key].encode()

    def add(self, key: str, amount: int) -> int:
        with self.changed:
            self.counts[key] = self.counts.get(key, 0) + amount
            return self.counts[key]


class Sums:
    """Sums over threads, in order of their ranks."""

    def __init__(self, size: int) -> None:
        self.given: list[Any] = [None] * size
        self.all = threading.Barrier(size, timeout=LIMIT)

    def of(self, rank: int) -> Callable[[Tensor], None]:
        def add(tensor: Tensor) -> None:
            assert tensor.is_contiguous()
            self.given[rank] = tensor.clone()
            self.all.wait()
            assert len({(g.shape, g.dtype) for g in self.given}) == 1, "the workers sum different things"
            found = sum(self.given[1:], self.given[0])
            self.all.wait()
            tensor.copy_(found)

        return add


def together(size: int, work: Any) -> list[Any]:
    """work(world) in `size` threads; what each gave. Raises what the first of them raised."""
    table, sums, found = Table(), Sums(size), [None] * size
    raised: list[BaseException] = []

    def one(rank: int) -> None:
        try:
            found[rank] = work(World(rank, size, table, sums.of(rank)))
        except BaseException as error:
            raised.append(error)
            sums.all.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=LIMIT)
    if raised:
        raise raised[0]
    return found
