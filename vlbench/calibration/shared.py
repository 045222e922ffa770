"""One calibration for several targets and patterns: the statistics of a dense model, on disk for all cells of a sweep
that would take the same ones (propagate=dense, no link of the chain before).

Whoever comes first takes them, and the others wait for it, as for the dense baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from torch import Tensor, nn

from ..disk.lease import lease
from ..disk.storage import digest, remove_folder, standing
from ..errors import UserError
from ..machine.workers import World
from ..tensors.checkpoint import CheckpointStore
from .statistics import Statistics

# Bytes of sums. Wanda's of a language model of 7B parameters are 4 MB; SparseGPT's Hessians would be 60 GB, those of
# BLIP-base 2 GB: dearer to keep than to take again.
LARGEST = 2**30
PARTS = "blocks"  # beside the statistics, while they are being taken: those of each block


@dataclass(frozen=True)
class SharedWith:
    """What cells that begin with the same dense model share: a folder, and what tells that model, its data and the seed
    from others'."""

    folder: Path
    identity: Mapping[str, Any]


class SharedStatistics:
    """statistics: by matrix, where another cell took them; else add() and save() keep those that this cell takes.

    Those of a block lie on disk before its decision does, so that a run that goes on after a kill keeps for others what
    it would have kept without one. begun: blocks that an earlier run of this cell decided.
    """

    def __init__(
        self, store: CheckpointStore | None, net: nn.Module, lost: Event | None = None, begun: int = 0
    ) -> None:
        self._store, self._taken, self._lost, self._net = store, dict[str, Statistics](), lost or Event(), net
        state = None if store is None else store.load()
        self.statistics = None if state is None else _unpacked(state[1], state[2], net)
        self._blocks = 0
        if self.statistics is not None:
            self._forget()  # a run was killed between saving them and removing their parts
        elif all(self._taken_before(block) for block in range(begun)):
            self._blocks = begun

    def add(self, statistics: Mapping[str, Statistics]) -> None:
        """Keep those of the next block; none at all once all together are larger than LARGEST."""
        if self._store is None or not self._store.world.leads:
            return
        self._taken.update(statistics)
        if sum(t.nbytes for t in _packed(self._taken)[0].values()) > LARGEST:
            self._forget()
            self._taken, self._store = {}, None
        elif not self._lost.is_set():
            self._part(self._store, self._blocks).save(0, *_packed(statistics))
            self._blocks += 1

    def save(self) -> None:
        """All blocks have been added."""
        if self._store is not None and self._store.world.leads and not self._lost.is_set():
            self._store.save(0, *_packed(self._taken))
            self._forget()

    def _taken_before(self, block: int) -> bool:
        """Read what an earlier run kept of a block. Without it, or where it is damaged, nothing is kept at all."""
        if self._store is None or not self._store.world.leads:
            return False
        try:
            state = self._part(self._store, block).load()
        except UserError:
            state = None
        if state is None:
            self._store = None
            return False
        self._taken.update(_unpacked(state[1], state[2], self._net))
        return True

    @staticmethod
    def _part(store: CheckpointStore, block: int) -> CheckpointStore:
        return CheckpointStore(store.folder.with_name(PARTS) / f"{block:04}", store.identity, 0.0)

    def _forget(self) -> None:
        if self._store is not None and self._store.world.leads:
            remove_folder(self._store.folder.with_name(PARTS))


@contextmanager
def shared_statistics(
    common: SharedWith | None,
    key: Mapping[str, Any],
    net: nn.Module,
    world: World,
    tell: Callable[[str], None],
    begun: int = 0,
) -> Iterator[SharedStatistics]:
    """common: None where nothing can be shared. key: how the statistics are taken. tell: given a sentence where
    another cell is about to take the same, and this one waits. begun: blocks that this cell has decided before. Raises
    UserError where what is on disk is damaged."""
    if common is None:
        yield SharedStatistics(None, net)
        return
    identity = {**common.identity, **key, "workers": world.size}
    place = common.folder / digest(identity)[:24]
    store = CheckpointStore(place / "statistics", identity, 0.0, world)
    if not world.leads:
        yield SharedStatistics(store, net)
        return
    lost = Event()
    with lease(place, lambda: standing(store.folder).is_dir(), lambda _: tell("another cell calibrates alike"), lost):
        yield SharedStatistics(store, net, lost, begun)


def _packed(statistics: Mapping[str, Statistics]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, and [number of its sums, samples, samples with an image's tokens] of each matrix: q, k and v share."""
    numbers: dict[int, int] = {}
    tensors: dict[str, Tensor] = {}
    table: dict[str, Any] = {}
    for name, sums in sorted(statistics.items()):  # as read from disk
        number = numbers.setdefault(id(sums), len(numbers))
        table[name] = [number, sums.samples, None if sums.vision is None else sums.vision.samples]
        for part, one in (("all", sums), ("vision", sums.vision)):
            for what in ("square_sum", "gram"):
                if one is not None and (tensor := getattr(one, what)) is not None:
                    tensors[f"{number}/{part}/{what}"] = tensor
    return tensors, table


def _unpacked(tensors: Mapping[str, Tensor], table: Mapping[str, Any], net: nn.Module) -> dict[str, Statistics]:
    """Where their matrices are: a model may be split over devices."""
    statistics: dict[str, Statistics] = {}
    shared: dict[int, Statistics] = {}
    for name, (number, samples, vision) in table.items():
        if number not in shared:
            identity = {
                key: t.to(net.get_parameter(name).device) for key, t in tensors.items() if key.startswith(f"{number}/")
            }
            shared[number] = _sums(identity, f"{number}/all", samples)
            shared[number].vision = None if vision is None else _sums(identity, f"{number}/vision", vision)
        statistics[name] = shared[number]
    return statistics


def _sums(tensors: Mapping[str, Tensor], prefix: str, samples: int) -> Statistics:
    return Statistics(tensors[f"{prefix}/square_sum"], samples, tensors.get(f"{prefix}/gram"))
