"""The open tables of models, tasks, methods, runtimes and capabilities: the package, entry points, the workspace.

A table is read from source text: the decorator's literal arguments say name, title and capability, so that `list`
imports nothing. A file is imported when one of its names is used. A built-in enjoys nothing that a stranger's file
does not: all come through here.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import UserError, did_you_mean
from .declared import declared
from .entry import Entry
from .kinds import _DECORATOR, ALSO_IN, FOLDERS, SINGULAR, Kind
from .source import uncommitted
from .workspace import WORKSPACE_MODULES, package_folder, refuse_foreign, workspace


@dataclass(frozen=True)
class Table:
    """All entries of one kind, and the files that could not be read."""

    kind: Kind
    entries: Mapping[str, Entry]
    broken: Mapping[str, str]

    def get(self, name: str) -> Entry:
        """The entry of that name; raises UserError with the nearest known one."""
        if name in self.entries:
            return self.entries[name]
        singular = SINGULAR[self.kind]
        hint = did_you_mean(name, self.entries)
        damaged = "".join(f" ({file} could not be read: {why})" for file, why in self.broken.items())
        raise UserError(f"there is no {singular} {name!r}. {hint}{damaged}")


@cache
def table(kind: Kind) -> Table:
    """One of the tables. Raises UserError where two files register one name (both are named)."""
    entries: dict[str, Entry] = {}
    broken: dict[str, str] = {}
    others = [FOLDERS[k] for k in ALSO_IN.get(kind, ())]
    for file, module, built_in in _files(kind, broken):
        try:
            entries_here = list(declared(file, module, built_in))
        except (SyntaxError, ValueError, OSError) as error:
            if file.parent.name not in others:  # else another table says so
                broken[str(file)] = f"{type(error).__name__}: {error}"
            continue
        if not entries_here and file.parent.name not in others:
            broken[str(file)] = f"it registers nothing: a class of it should be decorated with {_DECORATOR[kind]}"
        for entry in entries_here:
            if entry.kind == kind:
                _refuse_second(entries.get(entry.name), entry)
                entries[entry.name] = entry
    return Table(kind, dict(sorted(entries.items())), broken)


def _refuse_second(other: Entry | None, entry: Entry) -> None:
    if other is not None:
        what = f"the {SINGULAR[entry.kind]} {entry.name!r} is registered twice"
        places = f"in {entry.file}" if other.file == entry.file else f"by {other.file} and by {entry.file}"
        raise UserError(f"{what}, {places}: rename one of them.")


def forget() -> None:
    """Drop what was read of plug-ins (a workspace changed; tests)."""
    table.cache_clear()
    uncommitted.cache_clear()
    for name in [m for m in sys.modules if m.split(".")[0] == WORKSPACE_MODULES]:
        del sys.modules[name]


def _files(kind: Kind, broken: dict[str, str]) -> Iterator[tuple[Path, str, bool]]:
    """(file, module name, built in) of every plug-in file: the package, entry points, then the workspace."""
    folder = package_folder(FOLDERS[kind])
    yield from ((file, f"vlbench.{FOLDERS[kind]}.{file.stem}", True) for file in _plain_files(folder))
    for module in sorted({point.module for point in importlib.metadata.entry_points(group="vlbench.plugins")}):
        # Finding a module imports its parent packages, which may raise anything.
        try:
            spec = importlib.util.find_spec(module)
        except Exception as error:
            broken[f"the installed plug-in {module}"] = f"{type(error).__name__}: {error}"
            continue
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            broken[f"the installed plug-in {module}"] = "its package has no such Python file"
        else:
            yield Path(spec.origin), module, False
    space = workspace()
    for name in (FOLDERS[k] for k in (kind, *ALSO_IN.get(kind, ()))):
        own = space.folder / name
        if space.present and own.is_dir() and own.resolve() != package_folder(name).resolve():
            refuse_foreign(space.folder, own, *_read_files(own))
            yield from ((file, f"{WORKSPACE_MODULES}.{name}.{file.stem}", False) for file in _plain_files(own))


def _read_files(folder: Path) -> list[Path]:
    """What is run or read of a folder of plug-ins: their files, the helpers that they import, and files of cards."""
    return sorted(file for ending in ("*.py", "*.json", "*/*.py") for file in folder.glob(ending) if file.is_file())


def _plain_files(folder: Path) -> list[Path]:
    """Plug-in files: those whose name begins with an underscore are helpers, and with a dot are editors' own."""
    files = (file for file in folder.glob("*.py") if not file.name.startswith(("_", ".")))
    return sorted(file for file in files if file.is_file())  # a pipe would be waited for without end
