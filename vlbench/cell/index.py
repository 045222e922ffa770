"""An index of resolved words: a finished cell or a plan is found without importing the methods, most of which bring
torch, whose import takes longer than all the rest.

What is kept of a cell's words is what `resolve` made of them, as far as identities and plans need it (LinkFacts). Data,
weights and the sources of plug-ins are no part of it: they are looked at as ever, so that an identity is computed from
what is there now. Kept under the words and the state of all code that they were resolved by (plugins/state.py): a file
of the package that changed, or a plug-in, is another key, and nothing is found. Mistakes are not kept.

`resolve` itself is the reference: words are kept only where what is read back equals what it gave.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pydantic
from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import UserError
from ..mini.world import cache_folder
from ..plugins.state import code_state
from ..plugins.table import table
from .resolve import divide, resolve
from .spec import LinkFacts, LinkSpec, Spec, Words

if TYPE_CHECKING:
    from ..method import Method
    from ..options import MethodOptions

FILE = "resolved.sqlite"
LAYOUT = 1  # of what is kept: another one is another key
KEPT = 100_000  # cells in the index: those of code that has changed leave it in their order
AT_ONCE = 5_000  # cells that one command adds: a plan of 100,000 does not wait for it
BUSY = 2.0  # seconds to wait for another process; then the words are resolved
TABLE = "CREATE TABLE IF NOT EXISTS cells (number INTEGER PRIMARY KEY, key TEXT UNIQUE, answer TEXT, sum TEXT)"


class _Answer(BaseModel):
    """What is kept of a cell's words."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: str
    split: str
    recipe: str
    task_options: dict[str, Any]
    of_data: list[str]
    links: list[tuple[str, LinkFacts]]


class Index:
    """Use it in a `with`: what is new is written at its end, at once. A database that cannot be used (damaged, of
    another user, on a full or read-only disk) is done without."""

    def __init__(self, database: Path | None = None) -> None:
        self.database = database or cache_folder() / FILE
        self._new: dict[str, str] = {}
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> Self:
        self._code = code_state()
        with contextlib.suppress(OSError, sqlite3.Error):
            if self.database.stat().st_uid == os.geteuid():
                self._connection = sqlite3.connect(self.database, timeout=BUSY)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._new and self._code.settled and code_state() == self._code:
            self._write()

    def resolve(self, given: Mapping[str, str]) -> Spec:
        """What `resolve(given)` gives; its methods are imported when they are asked for. Raises UserError as that."""
        key = self._key(given)
        spec = self._found(key, given)
        if spec is None:
            spec = resolve(given)
            if len(self._new) < AT_ONCE and (answer := _kept(spec)):
                self._new[key] = answer
        return spec

    def _key(self, given: Mapping[str, str]) -> str:
        place = os.fspath(Path.cwd())  # words may name files from here
        return _sum(json.dumps([LAYOUT, pydantic.VERSION, self._code.digest, place, sorted(given.items())]))

    def _found(self, key: str, given: Mapping[str, str]) -> Spec | None:
        if self._connection is None:
            return None
        try:
            row = self._connection.execute("SELECT answer, sum FROM cells WHERE key = ?", (key,)).fetchone()
            if row is None or row[1] != _sum(key + row[0]):
                return None
            return _spec(_Answer.model_validate_json(row[0]), given)
        except (sqlite3.Error, ValidationError, UserError, TypeError, ValueError):
            return None  # damaged, or a plug-in that was there is not: resolve() says so

    def _write(self) -> None:
        rows = [(key, answer, _sum(key + answer)) for key, answer in self._new.items()]
        try:
            self.database.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(self.database, timeout=BUSY)) as connection, connection:
                connection.execute(TABLE)
                connection.executemany("INSERT OR REPLACE INTO cells (key, answer, sum) VALUES (?, ?, ?)", rows)
                connection.execute("DELETE FROM cells WHERE number <= (SELECT MAX(number) FROM cells) - ?", (KEPT,))
        except (OSError, sqlite3.OperationalError):
            return  # read-only, full, locked for BUSY, or a file system without locks
        except sqlite3.DatabaseError:
            with contextlib.suppress(OSError):
                self.database.unlink()  # damaged: begun anew by the next command


def indexed(given: Mapping[str, str]) -> Spec:
    """`Index.resolve` of one cell's words."""
    with Index() as index:
        return index.resolve(given)


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _kept(spec: Spec) -> str:
    """The answer to keep, empty where JSON does not give back what there is."""
    try:
        answer = _Answer(
            model=spec.model.name, split=spec.split, recipe=spec.recipe, of_data=list(spec.of_data),
            task_options=spec.task_options.model_dump(mode="json", exclude_unset=True),
            links=[(link.entry.name, link.facts) for link in spec.links],
        ).model_dump_json()  # fmt: skip
        same = _spec(_Answer.model_validate_json(answer), spec.given) == spec
    except (ValueError, TypeError):  # a value that JSON lacks: pydantic's errors are ValueErrors
        return ""
    return answer if same else ""


def _spec(answer: _Answer, given: Mapping[str, str]) -> Spec:
    task = table("tasks").get(divide(given, [])[0]["task"])
    task_class = task.load()
    plain = cache(partial(resolve, given))
    methods = table("methods")
    links = (
        LinkSpec(methods.get(name), facts, partial(_loaded, plain, number, facts))
        for number, (name, facts) in enumerate(answer.links)
    )
    return Spec(
        Words.model_validate(divide(given, [])[0]), task, task_class,
        task_class.Options.model_validate(answer.task_options), table("models").get(answer.model),
        answer.split, tuple(links), answer.recipe, dict(given), {k: given[k] for k in answer.of_data},
    )  # fmt: skip


def _loaded(plain: Callable[[], Spec], number: int, facts: LinkFacts) -> tuple[type[Method], MethodOptions]:
    """The class and options of a link that is applied. Raises UserError where they are others than the identity's."""
    link = plain().links[number]
    if link.facts != facts:
        raise UserError(
            f"{link.entry.file} gives other options for the same words than it did: options and recipes may depend on "
            "the words and the cell alone."
        )
    return link.loaded()
