"""Where and with what a number was made."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..machine.device import computing_device, product

PACKAGES = ("torch", "torchvision", "transformers", "timm", "numpy")


def provenance(seconds: float, workers: int = 1) -> dict[str, Any]:
    """Versions, device, threads and vlbench's own commit: what a reader needs to repeat the run. Several workers are
    told here and are no part of a cell's identity: they compute the same but for the order of sums."""
    return {
        "vlbench": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": product(computing_device()),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "seconds": round(seconds, 1),
        **({"workers": workers} if workers > 1 else {}),
    }


def _commit() -> str:
    """Commit of the checkout that vlbench runs from (never of the current folder), with + where it is modified."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty=+"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()
