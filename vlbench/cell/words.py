"""How words are read. Imports no torch: verbs that print what is on disk read words, too."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import UserError


def parse(words: Iterable[str]) -> dict[str, str]:
    """["task=vqav2", ...] -> {"task": "vqav2"}. Raises UserError for words without '=', and keys given twice."""
    words_of_cell: dict[str, str] = {}
    errors: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            errors.append(f"{word!r} should be key=value, like task=vqav2 (flags start with --).")
        elif key in words_of_cell:
            errors.append(f"{key}= is given twice ({words_of_cell[key]!r} and {value!r}).")
        else:
            words_of_cell[key] = value
    if errors:
        raise UserError("\n".join(errors))
    return words_of_cell
