"""Settings of an original's config.json by which it computes something that is not built here: refused, never passed
over, for a number would come out all the same."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from vlbench.errors import UserError


def refuse_unread(config: Mapping[str, Any], what: str, supported: Mapping[str, Collection[Any]]) -> None:
    """Raise UserError naming a setting whose value is none of the supported ones. supported: setting -> its values
    here; a setting that is absent, or null, is the original's usual one."""
    for name, values in supported.items():
        value = config.get(name)
        if value is not None and value not in values:
            known = " or ".join(f"{name}={v}" for v in values) or f"none that has a {name}"
            raise UserError(f"this {what} has {name}={value}, and vlbench reads {known}: take another checkpoint.")
