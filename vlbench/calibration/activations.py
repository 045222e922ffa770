"""Hidden states between two blocks, on the GPU, in host memory or on disk, as far as each has room."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..machine.device import free_bytes

FOLDERS = "activations-"  # how names of folders begin
VARIABLE = "VLBENCH_ACTIVATIONS_GB"  # host memory that calibration may fill; what is beyond goes to disk


@dataclass(frozen=True)
class Room:
    """Bytes that activations may take on the device and in host memory; the rest goes to files in `folder`. All
    towers' activations in one room share it. used: what is taken."""

    device: float
    host: float
    folder: Path | None = None
    used: dict[str, float] = field(default_factory=lambda: {"device": 0.0, "host": 0.0}, init=False, compare=False)

    @classmethod
    def here(cls, device: torch.device, folder: Path | None = None) -> Room:
        """Half of what is free on the device and, shared with this machine's other workers, on the host. It changes no
        number, and so is no option of a cell."""
        asked = os.environ.get(VARIABLE)
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 8 << 30
        on_device = (free_bytes(device) or 0) / 2
        workers = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return cls(on_device, float(asked) * 2**30 if asked else free / 2 / workers, folder)


class Activations:
    """One tensor a place (batch, call), copied in. A tensor of the shape of what is there takes over its memory: new
    ones for each block would leave the heap in pieces, and take up to twice what is held."""

    def __init__(self, device: torch.device, room: Room) -> None:
        self.device, self.room = device, room
        self._held: dict[tuple[int, int], Tensor | _File] = {}
        self._folder: Path | None = None
        self._files = 0

    def put(self, at: tuple[int, int], value: Tensor) -> None:
        if self._written_over(self._held.get(at), value):
            return
        self._free(at)
        size = value.numel() * value.element_size()
        used = self.room.used
        if value.device.type != "cpu" and used["device"] + size <= self.room.device:
            used["device"] += size
            self._held[at] = value.clone()
        elif used["host"] + size <= self.room.host:
            used["host"] += size
            self._held[at] = value.to("cpu", copy=True)
        else:
            self._held[at] = self._write(value)

    def get(self, at: tuple[int, int]) -> Tensor:
        held = self._held[at]
        return held.read().to(self.device) if isinstance(held, _File) else held.to(self.device)

    def counts(self) -> dict[str, int]:
        """How many tensors lie where."""
        places = ["disk" if isinstance(v, _File) else v.device.type for v in self._held.values()]
        return {place: places.count(place) for place in dict.fromkeys(places)}

    def close(self) -> None:
        """Forget all tensors and remove the files."""
        for at in list(self._held):
            self._free(at)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @staticmethod
    def _written_over(held: Tensor | _File | None, value: Tensor) -> bool:
        """Copy the value to where the old one is, unless it is a view of that."""
        if not isinstance(held, Tensor) or held.shape != value.shape or held.dtype != value.dtype:
            return False
        if held.untyped_storage().data_ptr() == value.untyped_storage().data_ptr():
            return False
        held.copy_(value)
        return True

    def _free(self, at: tuple[int, int]) -> None:
        old = self._held.pop(at, None)
        if isinstance(old, Tensor):
            place = "host" if old.device.type == "cpu" else "device"
            self.room.used[place] -= old.numel() * old.element_size()
        elif old is not None:
            old.path.unlink(missing_ok=True)

    def _write(self, value: Tensor) -> _File:
        if self._folder is None:
            if self.room.folder is not None:
                self.room.folder.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix=FOLDERS, dir=self.room.folder))
        self._files += 1
        file = _File(self._folder / f"{self._files}.bin", value.shape, value.dtype)
        value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tofile(file.path)
        return file


def remove_left(folder: Path) -> None:
    """Remove the files of a run that was killed. Nobody may be calibrating in this folder."""
    for old in folder.glob(f"{FOLDERS}*"):
        shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True)
class _File:
    path: Path
    shape: torch.Size
    dtype: torch.dtype

    def read(self) -> Tensor:
        size = self.shape.numel() * self.dtype.itemsize
        raw = torch.from_file(str(self.path), shared=False, size=size, dtype=torch.uint8)
        return raw.view(self.dtype).view(self.shape)
