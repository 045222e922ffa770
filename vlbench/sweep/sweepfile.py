"""The words of a sweep: comma lists on the command line, or a file with a sweep on each line.

    # leaderboards/mini.sweep
    task=vqav2,imagenet method=dense
    task=vqav2,imagenet method=upop sparsity=0.5,0.75 seed=0,1,2

A line is the product of its lists. Words on the command line are added to every line, and win over its own: with
task=vqav2 such a file is that task's board alone.
"""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..cell.words import parse
from ..errors import UserError, did_you_mean
from ..plugins.workspace import boards_folder

SUFFIX = ".sweep"


@dataclass(frozen=True)
class Line:
    """One product. place: where it stands, for messages; empty for the command line."""

    words: Mapping[str, str]
    place: str = ""

    def count(self) -> int:
        """How many cells() are, without making them."""
        return math.prod(len(_values(key, text)) for key, text in self.words.items())

    def cells(self) -> list[dict[str, str]]:
        """The words of every cell, the last key varying fastest."""
        lists = [_values(key, text) for key, text in self.words.items()]
        return [dict(zip(self.words, values, strict=True)) for values in itertools.product(*lists)]


def _values(key: str, text: str) -> list[str]:
    values = text.split(",")
    if len(values) > 1 and "" in values:
        raise UserError(f"{key}={text} has an empty value between two commas.")
    return list(dict.fromkeys(values))


def shipped(file: Path) -> Path:
    """The file itself, or, where there is none of that name, the sweep file of the leaderboards that is called so:
    --file mini, from anywhere. Raises UserError, which names those that ship, where a bare name is none of them."""
    if file.is_file() or len(file.parts) != 1 or file.suffix not in ("", SUFFIX):
        return file
    files = {path.stem: path for path in sorted(boards_folder().glob(f"**/*{SUFFIX}"))}
    if file.stem in files:
        return files[file.stem]
    raise UserError(f"{file} is no file here, and no sweep that ships. {did_you_mean(file.stem, files)}")


def lines_of(words: Sequence[str], file: Path | None) -> list[Line]:
    """The sweep that the command line asks for. Raises UserError with a line for every mistake."""
    given = parse(words)
    if file is None:
        return [Line(given)]
    lines_read: list[Line] = []
    errors: list[str] = []
    file = shipped(file)
    for number, text in enumerate(_read(file), start=1):
        place = f"{file}, line {number}"
        try:
            own = parse(shlex.split(text, comments=True))
        except (UserError, ValueError) as error:  # ValueError: a quotation that does not end
            errors += [f"{place}: {line}" for line in str(error).splitlines()]
            continue
        if own:
            lines_read.append(Line({**own, **given}, place))
    if errors:
        raise UserError("\n".join(errors))
    if not lines_read:
        raise UserError(f"{file} holds no sweep: a line should look like task=vqav2 method=upop seed=0,1,2")
    return lines_read


def _read(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({getattr(error, 'strerror', None) or error}).") from None
