"""The one exception that a user's mistake raises."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class UserError(Exception):
    """A mistake of the user's: one clear sentence that says what to do. The command line exits with code 2."""

    exit_code = 2


class RunFailed(Exception):  # noqa: N818 - it reads as what happened
    """Something failed that the command's words did not cause. The command line exits with code 1."""

    exit_code = 1


SHOWN = 40  # names in a sentence: more than any table of vlbench has, and fewer than a folder of runs may hold


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence that names the nearest known word, or all of them (at most SHOWN) when none is near."""
    names: Sequence[str] = sorted(known)
    near = get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]!r}?"
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"Known: {', '.join(names[:SHOWN])}{more}." if names else "There are none."
