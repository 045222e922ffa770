"""The worker processes of one cell: who this one is, and how they wait for one another.

Started by torchrun; data goes through files, and only "go on" through torchrun's key-value store, so that no
collective can time out behind a slow worker (a worker that dies makes torchrun stop the others).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any, Protocol, TypeVar

PATIENCE = timedelta(days=365)

T = TypeVar("T")


class Store(Protocol):
    """What is used of torch.distributed.Store."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def add(self, key: str, amount: int) -> int: ...


class World:
    """`size` workers, of which this is number `rank`. All of them call say/hear and barrier in the same order."""

    def __init__(self, rank: int = 0, size: int = 1, store: Store | None = None) -> None:
        self.rank, self.size, self._store, self._turn = rank, size, store, 0

    @property
    def leads(self) -> bool:
        """Whether this worker writes what all of them found."""
        return self.rank == 0

    def share(self, text: str = "") -> str:
        """The text that the leading worker gives, in every worker."""
        if self._store is None:
            return text
        key = self._next()
        if self.leads:
            self._store.set(key, text)
        return self._store.get(key).decode()

    def first(self, work: Callable[[], T]) -> T:
        """What `work` gives; the leading worker does it before the others, who find its files."""
        if self.leads:
            found = work()
            self.barrier()
            return found
        self.barrier()
        return work()

    def barrier(self) -> None:
        """Wait until every worker is here."""
        if self._store is None:
            return
        key = self._next()
        if self._store.add(f"{key}/here", 1) == self.size:
            self._store.set(key, "go")
        self._store.get(key)

    def _next(self) -> str:
        self._turn += 1
        return f"vlbench/{self._turn}"


ALONE = World()


@cache
def world() -> World:
    """The workers that torchrun started, or this process alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    import torch
    from torch.distributed.rendezvous import rendezvous

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    found: Any = next(iter(rendezvous("env://", timeout=PATIENCE)))
    store, rank, size = found
    store.set_timeout(PATIENCE)
    return World(rank, size, store)
