"""The three tables: models, tasks and methods, from the package, entry points and the user's workspace.

A table is read from source text: the decorator's literal arguments say name, title and capability, so that `list`
imports nothing. A file is imported when one of its names is used. A built-in enjoys nothing that a stranger's file
does not: all come through here.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from .errors import UserError, did_you_mean

Kind = Literal["models", "tasks", "methods"]
FOLDERS: dict[Kind, str] = {"models": "registry", "tasks": "tasks", "methods": "methods"}
DECORATORS: dict[str, Kind] = {"family": "models", "task": "tasks", "method": "methods", "chain": "methods"}
WORKSPACE_FILE = "vlbench.toml"


@dataclass(frozen=True)
class Entry:
    """One name of one table, as its file declares it. facts: the literal arguments. built_in: ships in the package."""

    kind: Kind
    name: str
    file: Path
    module: str
    attribute: str
    built_in: bool
    facts: Mapping[str, Any] = field(default_factory=dict)

    def digest(self) -> str | None:
        """Digest of the source for a file outside the package: it is the plug-in's version. None for built-ins."""
        return None if self.built_in else hashlib.sha256(self.file.read_bytes()).hexdigest()

    def load(self) -> Any:
        """Import the file and return the registered class. Raises UserError naming the file where it raises."""
        try:
            module = _import(self)
        except UserError:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise UserError(
                f"{self.file} cannot be used, it raises on import ({what}): mend or move the file."
            ) from error
        return getattr(module, self.attribute)


@dataclass(frozen=True)
class Workspace:
    """The folder of the nearest vlbench.toml, and what it says ([roots] coco = ..., imagenet = ..., weights = ...)."""

    folder: Path
    roots: Mapping[str, str]
    present: bool = True


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
        singular = self.kind.removesuffix("s")
        hint = did_you_mean(name, self.entries)
        damaged = "".join(f" ({file} could not be read: {why})" for file, why in self.broken.items())
        raise UserError(f"there is no {singular} {name!r}. {hint}{damaged}")


def workspace(start: Path | None = None) -> Workspace:
    """The nearest folder upwards with a vlbench.toml; else an empty one here."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        file = folder / WORKSPACE_FILE
        if file.is_file():
            try:
                told = tomllib.loads(file.read_text(encoding="utf-8"))
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise UserError(f"{file} is not valid TOML ({error}).") from error
            roots = {str(k): str(folder / Path(str(v)).expanduser()) for k, v in told.get("roots", {}).items()}
            return Workspace(folder, roots)
    return Workspace(here, {}, present=False)


@cache
def table(kind: Kind) -> Table:
    """One of the three tables. Raises UserError where two files register one name (both are named)."""
    entries: dict[str, Entry] = {}
    broken: dict[str, str] = {}
    for file, module, built_in in _files(kind):
        try:
            found = list(declared(file, module, built_in))
        except (SyntaxError, ValueError, OSError, UnicodeDecodeError) as error:
            broken[str(file)] = f"{type(error).__name__}: {error}"
            continue
        for entry in found:
            if entry.kind != kind:
                continue
            other = entries.get(entry.name)
            if other is not None:
                raise UserError(
                    f"the {kind.removesuffix('s')} {entry.name!r} is registered twice, by {other.file} and by "
                    f"{entry.file}: rename one of them."
                )
            entries[entry.name] = entry
    return Table(kind, dict(sorted(entries.items())), broken)


def forget() -> None:
    """Drop the cached tables (a workspace changed; tests)."""
    table.cache_clear()


def _files(kind: Kind) -> Iterator[tuple[Path, str, bool]]:
    """(file, module name, built in) of every plug-in file: the package, entry points, then the workspace."""
    folder = _package_folder(kind)
    for file in sorted(folder.glob("*.py")):
        if not file.name.startswith("_"):
            yield file, f"vlbench.{FOLDERS[kind]}.{file.stem}", True
    for point in sorted(importlib.metadata.entry_points(group="vlbench.plugins"), key=lambda p: p.name):
        spec = importlib.util.find_spec(point.module)
        if spec is not None and spec.origin:
            yield Path(spec.origin), point.module, False
    space = workspace()
    own = space.folder / FOLDERS[kind]
    if space.present and own.is_dir() and own.resolve() != folder.resolve():
        for file in sorted(own.glob("*.py")):
            if not file.name.startswith("_"):
                yield file, f"vlbench_workspace.{FOLDERS[kind]}.{file.stem}", False


def _package_folder(kind: Kind) -> Path:
    spec = importlib.util.find_spec(f"vlbench.{FOLDERS[kind]}")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"this installation lacks vlbench.{FOLDERS[kind]}: reinstall vlbench.")
    return Path(next(iter(spec.submodule_search_locations)))


def declared(file: Path, module: str, built_in: bool) -> Iterator[Entry]:
    """The entries a file declares, from its decorators. Raises ValueError where an argument is no literal."""
    for node in ast.parse(file.read_text(encoding="utf-8"), str(file)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name):
                kind = DECORATORS.get(decorator.func.id)
                if kind is not None:
                    for name, facts in _facts(decorator, file):
                        yield Entry(kind, name, file, module, node.name, built_in, facts)


def _facts(call: ast.Call, file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, literal arguments) of a decorator: the name is its first argument, or each Card's name=."""
    cards = [a for a in call.args if isinstance(a, ast.Call)]
    for one in cards or [call]:
        facts: dict[str, Any] = {}
        for keyword in one.keywords:
            try:
                facts[str(keyword.arg)] = _literal(keyword.value)
            except ValueError:
                if keyword.arg in ("name", "title", "capability", "capabilities"):
                    raise ValueError(f"line {one.lineno}: {keyword.arg}= must be a literal") from None
        if not cards:
            if not call.args or not isinstance(call.args[0], ast.Constant):
                raise ValueError(f"line {call.lineno}: the name must be a literal, the decorator's first argument")
            facts["name"] = call.args[0].value
        if "name" not in facts:
            raise ValueError(f"line {one.lineno}: a card without name=")
        yield str(facts["name"]), facts


def _literal(node: ast.expr) -> Any:
    """A literal, or a call with literal keywords (ImageSpec(size=64)) as a dict of them."""
    if isinstance(node, ast.Call) and not node.args:
        return {str(k.arg): _literal(k.value) for k in node.keywords}
    return ast.literal_eval(node)


def _import(entry: Entry) -> ModuleType:
    """Import a plug-in file under its module name; workspace files by path, so that no folder enters sys.path."""
    if entry.module in sys.modules and getattr(sys.modules[entry.module], "__file__", None) == str(entry.file):
        return sys.modules[entry.module]
    if not entry.module.startswith("vlbench_workspace."):
        return importlib.import_module(entry.module)
    spec = importlib.util.spec_from_file_location(entry.module, entry.file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[entry.module] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[entry.module]
        raise
    return module
