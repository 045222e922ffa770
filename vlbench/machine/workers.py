"""The worker processes of one cell: who this one is, how they wait for one another, and how they add up.

Started by torchrun. Data goes through files, and "go on" through torchrun's key-value store, so that no collective can
time out behind a slow worker (a worker that dies makes torchrun stop the others). Only what is summed at every training
step and every calibrated block, gradients and statistics, goes through a process group, which is begun when it is first
used and waits as long. Many machines need nothing more than torchrun's rendezvous, one runs folder that all of them
share, and devices of one kind (sums are the same bits in every worker, what each makes of them should be too).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..errors import RunFailed, UserError
from .device import computing_device, count, take_number

if TYPE_CHECKING:
    from torch import Tensor

PATIENCE = timedelta(days=365)
BROKEN = "\0broken: "  # how the words of a meeting begin that nobody can go on from

T = TypeVar("T")


class Store(Protocol):
    """What is used of torch.distributed.Store."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def add(self, key: str, amount: int) -> int: ...


class World:
    """`size` workers, of which this is number `rank`. All of them come to the same meetings in the same order.

    A meeting has a name, `at`: whoever comes to another meeting than the first worker there raises RunFailed with both
    names (torchrun then stops the others), instead of waiting for a year. add: sums a tensor over all, in place.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, store: Store | None = None, add: Callable[[Tensor], None] | None = None
    ) -> None:
        self.rank, self.size, self._store, self._add, self._turn = rank, size, store, add, 0

    @property
    def leads(self) -> bool:
        """Whether this worker writes what all of them found."""
        return self.rank == 0

    def share(self, at: str, text: str = "") -> str:
        """The text that the leading worker gives, in every worker."""
        if self._store is None:
            return text
        key = self._meet(self._store, at)
        if self.leads:
            self._store.set(key, text)
        return self._heard(self._store, key)

    def gather(self, at: str, text: str) -> list[str]:
        """The texts of all workers, in order of their ranks, in every worker."""
        if self._store is None:
            return [text]
        key = self._meet(self._store, at)
        self._store.set(f"{key}/{self.rank}", text)
        return [self._heard(self._store, f"{key}/{rank}") for rank in range(self.size)]

    def sum(self, tensor: Tensor) -> None:
        """Replace a contiguous tensor by its sum over all workers, the same bits in each."""
        if self._add is not None:
            self._add(tensor)

    def first(self, at: str, work: Callable[[], T]) -> T:
        """What `work` gives; the leading worker does it before the others, who find its files."""
        if self.leads:
            result = work()
            self.barrier(at)
            return result
        self.barrier(at)
        return work()

    def barrier(self, at: str) -> None:
        """Wait until every worker is here."""
        if self._store is None:
            return
        key = self._meet(self._store, at)
        if self._store.add(f"{key}/here", 1) == self.size:
            self._store.set(key, "go")
        self._heard(self._store, key)

    def _meet(self, store: Store, at: str) -> str:
        """The key of this worker's next meeting. Raises RunFailed where another worker calls it otherwise."""
        self._turn += 1
        key = f"vlbench/{self._turn}"
        if store.add(f"{key}/arrived", 1) == 1:
            store.set(f"{key}/name", at)
        elif (theirs := store.get(f"{key}/name").decode()) != at:
            why = (
                f"worker {self.rank} came to {at!r} where another came to {theirs!r} (meeting {self._turn}): a method "
                "does something in one worker that the others do not do."
            )
            for place in (key, *(f"{key}/{rank}" for rank in range(self.size))):
                store.set(place, BROKEN + why)  # those who wait there are told, too
            raise RunFailed(why)
        return key

    def _heard(self, store: Store, key: str) -> str:
        text = store.get(key).decode()
        if text.startswith(BROKEN):
            raise RunFailed(text.removeprefix(BROKEN))
        return text


ALONE = World()


class Group:
    """torch.distributed's process group of all workers (gloo on the CPU, nccl on GPUs), begun by the first sum."""

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.store, self.rank, self.size, self._begun = store, rank, size, 0

    def add(self, tensor: Tensor) -> None:
        """Sum the tensor over all workers, in place. Raises RunFailed where there are not as many as torchrun said."""
        from torch import distributed

        if not distributed.is_initialized():
            self._begin()
        distributed.all_reduce(tensor)

    def _begin(self) -> None:
        import torch
        from torch import distributed
        from torch.distributed import get_default_backend_for_device as backend
        from torch.distributed.distributed_c10d import PrefixStore

        device = computing_device()
        on_gpu = device.type != "cpu"
        self._begun += 1  # a group that was left has its keys in the store still
        distributed.init_process_group(
            f"cpu:gloo,{device.type}:{backend(device.type)}" if on_gpu else "gloo",
            store=PrefixStore(f"vlbench/group{self._begun}", self.store), rank=self.rank, world_size=self.size,
            timeout=PATIENCE,
        )  # fmt: skip
        here = torch.ones(1, device=device)
        distributed.all_reduce(here)
        if int(here) != self.size:
            raise RunFailed(f"torchrun told of {self.size} workers, and {int(here)} answer: start the command again.")


def leave() -> None:
    """End the process group, where one was begun. For a worker that has done all its work."""
    distributed = sys.modules.get("torch.distributed")  # not imported: nothing was begun
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


@cache
def world() -> World:
    """The workers that torchrun started, or this process alone. Raises UserError where a machine has fewer GPUs than
    workers, and RunFailed where two workers have one number."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    from torch.distributed.rendezvous import rendezvous

    if here := count():
        number = int(os.environ.get("LOCAL_RANK", "0"))
        if number >= here:
            raise UserError(f"this machine has {here} GPUs, one a worker: start torchrun with --nproc-per-node {here}.")
        take_number(number)
    meeting: Any = next(iter(rendezvous("env://", timeout=PATIENCE)))
    store, rank, size = meeting
    store.set_timeout(PATIENCE)
    if store.add(f"vlbench/worker/{rank}", 1) > 1:
        raise RunFailed(f"two workers have the number {rank}: start them with torchrun.")
    return World(rank, size, store, Group(store, rank, size).add)
