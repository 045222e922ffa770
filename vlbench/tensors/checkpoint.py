"""Training state on disk: tensors and JSON only, so that reading it never runs code."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..disk.digests import file_digest
from ..disk.storage import canonical, new_folder, read_sealed, remove_folder, standing, write_sealed
from ..errors import RunFailed, UserError
from ..machine.workers import ALONE, World
from .reading import save_tensors

META, TENSORS = "meta.json", "state.safetensors"
VISIBLE = 120.0  # seconds after which a shared file system shows on one machine what was written on another
SHARE = 10.0  # a save takes at most one part in ten of the time: a large model's takes longer than the interval


class CheckpointStore:
    """One stage's latest state in `folder`; `identity` is what a resumed run must agree on.

    A state is saved when `every_seconds` have passed, so that a kill loses at most that interval (or ten times what a
    save takes); 0 saves every step. The result does not depend on when it was saved. Of several workers (`world`) the
    leading one saves, and all load what it finds.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], every_seconds: float = 15.0, world: World = ALONE
    ) -> None:
        self.folder, self.identity, self.every_seconds, self.world = folder, dict(identity), every_seconds, world
        self._last, self._took = time.monotonic(), 0.0

    def due(self) -> bool:
        if not self.world.leads:
            return False
        wait = max(self.every_seconds, SHARE * self._took) if self.every_seconds else 0.0
        return time.monotonic() - self._last >= wait

    def save(self, step: int, tensors: Mapping[str, Tensor], log: Any) -> None:
        """Replace the stored state by this one. Raises UserError where it cannot be written; the old state stays."""
        if not self.world.leads:
            return
        start = time.monotonic()
        with new_folder(self.folder) as temporary:
            save_tensors(temporary / TENSORS, tensors)
            sha = file_digest(temporary / TENSORS)
            write_sealed(temporary / META, {"step": step, "identity": self.identity, "log": log, "sha256": sha})
        self._last = time.monotonic()
        self._took = self._last - start

    def load(self) -> tuple[int, dict[str, Tensor], Any] | None:
        """(step, tensors, log) or None, the same in every worker. Raises UserError where the state is damaged or
        belongs to another cell, RunFailed where a worker does not see what the leading one sees."""
        stored = self._read() if self.world.leads else None
        stamp = self.world.share(f"load {self.identity.get('stage', 'a state')}", "" if stored is None else stored[1])
        if not stamp:
            return None
        until = time.monotonic() + VISIBLE
        while stored is None or stored[1] != stamp:
            if time.monotonic() > until:
                raise RunFailed(f"worker {self.world.rank} does not see {self.folder}: all machines must share --runs.")
            time.sleep(0.05)
            stored = self._read()
        return stored[0]

    def _read(self) -> tuple[tuple[int, dict[str, Tensor], Any], str] | None:
        """What is stored, and words that tell it from what was stored before."""
        folder = standing(self.folder)
        if not folder.is_dir():
            return None
        try:
            meta = read_sealed(folder / META)
            sound = file_digest(folder / TENSORS) == meta["sha256"]
            # Copied, because load_file maps the file, and NFS does not remove a mapped one at the next save.
            tensors = {k: v.clone() for k, v in load_file(folder / TENSORS).items()} if sound else {}
        except (UserError, KeyError, OSError, SafetensorError) as error:
            raise self._damaged(folder) from error
        if not sound:
            raise self._damaged(folder)
        self._refuse_other(folder, meta["identity"])
        return (int(meta["step"]), tensors, meta["log"]), f"{meta['step']} {meta['sha256']}"

    def _damaged(self, folder: Path) -> UserError:
        return UserError(f"checkpoint {folder} is damaged: delete that folder to start this stage again.")

    def _refuse_other(self, folder: Path, stored: Mapping[str, Any]) -> None:
        if canonical(stored) == canonical(self.identity):
            return
        old, new = json.loads(canonical(stored)), json.loads(canonical(self.identity))
        changed = [
            f"{key} was {_shown(old, key)} and is {_shown(new, key)}"
            for key in sorted({*old, *new})
            if key not in old or key not in new or old[key] != new[key]
        ]
        raise UserError(
            f"checkpoint {folder} belongs to other settings ({'; '.join(changed)}): "
            "delete that folder to start this stage again."
        )

    def clear(self) -> None:
        """Remove the stored state (the stage is done)."""
        if self.world.leads:
            remove_folder(self.folder)


def _shown(settings: Mapping[str, Any], key: str) -> str:
    return str(settings[key]) if key in settings else "not given"
