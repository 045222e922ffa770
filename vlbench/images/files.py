"""Image files that cannot be used. Without torch: tasks name files, and are read to print a table."""

from __future__ import annotations

import stat
from pathlib import Path

from ..errors import RunFailed


class Undecodable(RunFailed, OSError):  # noqa: N818 - it reads as what the image is
    """An image that cannot be used, by name. Evaluation marks its samples; training, which cannot do without, ends."""


def refuse_special(path: Path) -> None:
    """Raise Undecodable for a pipe, a socket or a device, which would be waited for without end."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # told by who opens it
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise Undecodable(f"{path} is no file but a pipe, a socket or a device")
