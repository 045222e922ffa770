"""Training state on disk: tensors and JSON only, so that reading it never runs code."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import UserError
from ..storage import canonical, digest, replace_folder, write_json
from ..weights import file_digest


class CheckpointStore:
    """One stage's latest state in `folder`; `identity` is what a resumed run must agree on.

    A state is saved when `every_seconds` have passed, so that a kill loses at most that interval; the result does not
    depend on when it was saved.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], every_seconds: float = 15.0) -> None:
        self.folder, self.identity, self.every_seconds = folder, dict(identity), every_seconds
        self._last = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._last >= self.every_seconds

    def save(self, step: int, tensors: Mapping[str, Tensor], log: Any) -> None:
        """Replace the stored state by this one."""
        temporary = self.folder.with_name(self.folder.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            save_file(
                {k: v.detach().cpu().contiguous() for k, v in tensors.items()},
                temporary / "state.safetensors",
            )
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot save a checkpoint in {self.folder}: {error}. Free some space.") from error
        sha = file_digest(temporary / "state.safetensors")
        meta = {"step": step, "identity": self.identity, "log": log, "sha256": sha}
        write_json(temporary / "meta.json", {**meta, "meta_sha256": digest(meta)})
        replace_folder(temporary, self.folder)
        self._last = time.monotonic()

    def load(self) -> tuple[int, dict[str, Tensor], Any] | None:
        """(step, tensors, log) or None. Raises UserError where the state is damaged or belongs to another cell."""
        if not (self.folder / "meta.json").is_file():
            return None
        try:
            meta = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
            claimed = meta.pop("meta_sha256")
            sound = digest(meta) == claimed and file_digest(self.folder / "state.safetensors") == meta["sha256"]
            tensors = load_file(self.folder / "state.safetensors") if sound else {}
        except (ValueError, KeyError, OSError, SafetensorError):
            sound, meta, tensors = False, {}, {}
        if not sound:
            raise UserError(f"checkpoint {self.folder} is damaged: delete that folder to start this stage again.")
        if canonical(meta["identity"]) != canonical(self.identity):
            changed = sorted(
                k for k in {*meta["identity"], *self.identity} if meta["identity"].get(k) != self.identity.get(k)
            )
            raise UserError(
                f"checkpoint {self.folder} belongs to other settings ({', '.join(changed)} changed): "
                "delete that folder to start this stage again."
            )
        return int(meta["step"]), tensors, meta["log"]

    def clear(self) -> None:
        """Remove the stored state (the stage is done)."""
        shutil.rmtree(self.folder, ignore_errors=True)
