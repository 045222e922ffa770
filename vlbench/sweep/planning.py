"""The plan of a sweep: words -> cells, every mistake told at once, with the dense baselines that they need.

100,000 cells should be planned in seconds. What cells share is found once: the words of cells that differ in their seed
mean the same but for it, and data and weights have one digest however many cells read them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..cell.cell import SHARED, Cell, open_cell
from ..cell.contents import silent
from ..cell.index import Index
from ..cell.roots import BuildProgress
from ..cell.spec import Spec
from ..errors import UserError
from ..plugins.entry import reading_once
from ..records.naming import cell_id
from .executor import Work
from .sweepfile import Line

LARGEST = 10**6  # cells of a sweep
SHOWN = 3  # cells that a message names
UNKNOWN = "is not known here"  # what resolve() says of a word that nothing in the cell takes


@dataclass(frozen=True)
class Planned:
    """One cell of a sweep. dense: its baseline's identity, empty where it has none or is one itself. steps: of
    training, where its methods have such an option."""

    work: Work
    dense: str = ""
    steps: int = 0

    @property
    def cell(self) -> str:
        return self.work.cell


@dataclass
class _Group:
    """Cells whose words are the same but for the seed, and what the first of them means."""

    spec: Spec
    members: list[dict[str, str]] = field(default_factory=list)


def plan(
    lines: Sequence[Line], progress: BuildProgress | None = None, digesting: BuildProgress = silent
) -> list[Planned]:
    """The distinct cells of all lines, and the dense baselines they need, baselines first. Raises one UserError with
    everything that is wrong with any of them."""
    _refuse_endless(lines)
    with reading_once(), Index() as index:
        opener = _Opener(progress, digesting)
        opened = [(group, opener.open(group)) for group in _resolved(lines, index)]
        opener.complain()
        planned: dict[str, Planned] = {}
        for group, cell in opened:
            if cell is not None:
                _add(planned, group, cell)
    needed = {one.dense for one in planned.values()}
    return sorted(planned.values(), key=lambda one: one.cell not in needed)


def _refuse_endless(lines: Sequence[Line]) -> None:
    """Raise UserError by the lengths of the lists, before a cell is made: their product is larger than any memory."""
    count = sum(line.count() for line in lines)
    if count > LARGEST:
        raise UserError(f"this sweep has {count:,} cells, and at most {LARGEST:,} are planned: split it in several.")


def _add(planned: dict[str, Planned], group: _Group, first: Cell) -> None:
    """The cells of a group, and their baseline."""
    dense = "" if first.is_dense or not first.task.labelled(first.split) else first.dense().id
    steps = sum(link.facts.steps for link in first.spec.links)
    for cell, words in zip(_identities(group, first), group.members, strict=True):
        planned.setdefault(cell, Planned(Work(cell, words), dense, steps))
    if dense:
        planned.setdefault(dense, Planned(Work(dense, group.members[0], baseline=True)))


def _identities(group: _Group, first: Cell) -> list[str]:
    """The id of every member: that of the first, with another seed."""
    if first.seed is None:
        return [first.id] * len(group.members)
    stem = first.id.rpartition("-")[0].removesuffix(f"-s{first.seed}")
    seeds = [first.seed, *(int(words["seed"]) for words in group.members[1:])]
    return [cell_id([stem], seed, {**first.identity, "seed": seed}) for seed in seeds]


def _resolved(lines: Sequence[Line], index: Index) -> list[_Group]:
    """Every cell's words and what they mean."""
    groups: dict[Any, _Group | UserError] = {}
    errors: list[str] = []
    for line in lines:
        wrong: dict[str, list[dict[str, str]]] = defaultdict(list)
        cells = line.cells()
        for words in cells:
            key = _but_for_the_seed(words)
            if key not in groups:
                try:
                    groups[key] = _Group(index.resolve(words))
                except UserError as error:
                    groups[key] = error
            group = groups[key]
            if isinstance(group, _Group):
                group.members.append(words)
            else:
                for sentence in str(group).splitlines():
                    wrong[sentence].append(words)
        errors += _complaints(line, cells, wrong)
    if errors:
        raise UserError("\n".join(dict.fromkeys(errors)))
    return [group for group in groups.values() if isinstance(group, _Group)]


def _but_for_the_seed(words: dict[str, str]) -> Any:
    """What is equal for cells that differ in a seed that can be read without a doubt."""
    if re.fullmatch(r"0|[1-9][0-9]{0,8}", words.get("seed", "")):
        words = {**words, "seed": "any"}
    return frozenset(words.items())


def _complaints(line: Line, cells: Sequence[dict[str, str]], wrong: dict[str, list[dict[str, str]]]) -> list[str]:
    """A sentence for each mistake of a line, with the cells it is in where these are not all."""
    lines = []
    for sentence, bad in wrong.items():
        where = "" if len(bad) == len(cells) else f" ({_some([_varying(line, words) for words in bad])})"
        lines.append(f"{line.place + ': ' if line.place else ''}{sentence}{where}{_hint(sentence, cells, bad)}")
    return lines


def _hint(sentence: str, cells: Sequence[dict[str, str]], bad: Sequence[dict[str, str]]) -> str:
    """What to do about a word that only some methods (tasks, models) of the line know."""
    if UNKNOWN not in sentence:
        return ""
    good = [words for words in cells if words not in bad]
    for key in ("method", "task", "model"):
        values = list(dict.fromkeys(words.get(key, "") for words in bad))
        if good and all(values) and not {words.get(key) for words in good} & set(values):
            return (
                f" Every word of a line goes to every cell of it: put {key}={','.join(values)} on a line of its own "
                "(vlbench sweep --file PATH)."
            )
    return ""


def _varying(line: Line, words: dict[str, str]) -> str:
    """The words that tell a cell from the others of its line."""
    return " ".join(f"{key}={value}" for key, value in words.items() if "," in line.words[key])


def _some(items: Sequence[str]) -> str:
    more = f"; and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return "; ".join(items[:SHOWN]) + more


class _Opener:
    """Opens cells. Data and weights that several of them share are looked up, and their digests taken, once."""

    def __init__(self, progress: BuildProgress | None, digesting: BuildProgress) -> None:
        self.progress, self.digesting = progress, digesting
        self.first: dict[tuple[Any, ...], Cell] = {}
        self.errors: dict[str, list[str]] = defaultdict(list)

    def open(self, group: _Group) -> Cell | None:
        """The first cell of a group, or None after noting why there is none."""
        try:
            cell = self._open(group.spec)
            _ = cell.id  # reads what the identity is made of
        except UserError as error:
            self.errors[str(error)] += [" ".join(f"{k}={v}" for k, v in words.items()) for words in group.members]
            return None
        return cell

    def complain(self) -> None:
        if self.errors:
            messages = [f"{message}\n(needed by {_some(cells)})" for message, cells in self.errors.items()]
            raise UserError("\n".join(messages))

    def _open(self, spec: Spec) -> Cell:
        words = spec.words
        key = (
            *(words.suite, spec.task.name, repr(spec.task_options), spec.split, words.limit),
            *(spec.model.name, words.checkpoint, spec.uses_seed),
        )
        if key not in self.first:
            self.first[key] = open_cell(spec, self.progress, self.digesting)
            return self.first[key]
        first = self.first[key]
        cell = replace(first, spec=spec)
        vars(cell).update({name: vars(first)[name] for name in SHARED if name in vars(first)})
        return cell
