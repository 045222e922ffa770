"""The three tables: models, tasks and methods, from the package, entry points and the user's workspace.

A table is read from source text: the decorator's literal arguments say name, title and capability, so that `list`
imports nothing. A file is imported when one of its names is used. A built-in enjoys nothing that a stranger's file
does not: all come through here.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Literal, TypeVar

from .errors import UserError, did_you_mean

Kind = Literal["models", "tasks", "methods"]
FOLDERS: dict[Kind, str] = {"models": "registry", "tasks": "tasks", "methods": "methods"}
DECORATORS: dict[str, Kind] = {"family": "models", "task": "tasks", "method": "methods", "chain": "methods"}
# What the engine reads of a declaration without importing the file.
REQUIRED: dict[str, tuple[str, ...]] = {
    "family": ("title", "capabilities", "checkpoint", "image"),
    "task": ("title", "capability", "metric", "version"),
    "method": ("title", "role"),
    "chain": ("title", "links"),
}
_DECORATOR: dict[Kind, str] = {"models": "@family(Card(...))", "tasks": "@task(...)", "methods": "@method(...)"}
# Prefixes of words (task.decoding=, evaluation.batch_size=): no link of a chain may be called so.
RESERVED = ("task", "evaluation")
WORKSPACE_FILE = "vlbench.toml"
WORKSPACE_MODULES = "vlbench_workspace"


T = TypeVar("T")
_READ: ContextVar[dict[tuple[Any, ...], Any] | None] = ContextVar("_READ", default=None)


@contextmanager
def reading_once() -> Iterator[None]:
    """Inside, a plug-in's source is read once and not for every cell: a plan of 100,000 is of one moment."""
    token = _READ.set({})
    try:
        yield
    finally:
        _READ.reset(token)


def _once(key: tuple[Any, ...], read: Callable[[], T]) -> T:
    """What `read` gives: within reading_once() that of the first time."""
    known = _READ.get()
    if known is None:
        return read()
    if key not in known:
        known[key] = read()
    found: T = known[key]
    return found


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
        """Digest of the source, and of what it imports from beside it: the version of a file outside the package.

        None for built-ins, whose version is a number; but one that a checkout has changed or added, and git does not
        hold yet, counts as a file outside the package: or an edited formula would get its old results.
        """
        return _once(("digest", self.file, self.module, self.built_in), self._digest)

    def _digest(self) -> str | None:
        files = source_files(self.file, self.module)
        if self.built_in and not uncommitted().intersection(files):
            return None
        sha = hashlib.sha256()
        for file in files:
            sha.update(hashlib.sha256(file.read_bytes()).digest())
        return sha.hexdigest()

    def load(self) -> Any:
        """Import the file and return the registered class. Raises UserError naming the file where it raises."""
        try:
            return getattr(_once(("module", self.file, self.module), lambda: _import(self)), self.attribute)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            what = f"{type(error).__name__}: {error}"
            raise UserError(
                f"{self.file} cannot be used, it raises on import ({what}): mend or move the file."
            ) from error


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
            return Workspace(folder, {k: str(folder / Path(v).expanduser()) for k, v in _read_roots(file).items()})
    return Workspace(here, {}, present=False)


def _read_roots(file: Path) -> dict[str, str]:
    try:
        told = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file} cannot be read as TOML ({error}): mend it.") from error
    unknown = [key for key in told if key != "roots"]
    if unknown:
        raise UserError(f"{file} has {unknown[0]!r}, but knows only the table [roots]: mend it.")
    roots = told.get("roots", {})
    if not isinstance(roots, dict) or not all(isinstance(v, str) for v in roots.values()):
        raise UserError(f'{file}: [roots] should hold lines like imagenet = "/data/imagenet".')
    return roots


@cache
def table(kind: Kind) -> Table:
    """One of the three tables. Raises UserError where two files register one name (both are named)."""
    entries: dict[str, Entry] = {}
    broken: dict[str, str] = {}
    for file, module, built_in in _files(kind, broken):
        try:
            found = list(declared(file, module, built_in))
        except (SyntaxError, ValueError, OSError) as error:
            broken[str(file)] = f"{type(error).__name__}: {error}"
            continue
        if not found:
            broken[str(file)] = f"it registers nothing: a class of it should be decorated with {_DECORATOR[kind]}"
        for entry in found:
            if entry.kind == kind:
                _refuse_second(entries.get(entry.name), entry)
                entries[entry.name] = entry
    return Table(kind, dict(sorted(entries.items())), broken)


def _refuse_second(other: Entry | None, entry: Entry) -> None:
    if other is not None:
        what = f"the {entry.kind.removesuffix('s')} {entry.name!r} is registered twice"
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
    own = space.folder / FOLDERS[kind]
    if space.present and own.is_dir() and own.resolve() != folder.resolve():
        yield from ((file, f"{WORKSPACE_MODULES}.{FOLDERS[kind]}.{file.stem}", False) for file in _plain_files(own))


def _plain_files(folder: Path) -> list[Path]:
    """Plug-in files: those whose name begins with an underscore are helpers, and with a dot are editors' own."""
    return sorted(file for file in folder.glob("*.py") if not file.name.startswith(("_", ".")))


def package_folder(name: str) -> Path:
    """Where vlbench.NAME lies: the registry, tasks, methods or leaderboards of this installation."""
    spec = importlib.util.find_spec(f"vlbench.{name}")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"this installation lacks vlbench.{name}: reinstall vlbench.")
    return Path(next(iter(spec.submodule_search_locations)))


def declared(file: Path, module: str, built_in: bool) -> Iterator[Entry]:
    """The entries a file declares, from its decorators. Raises ValueError where an argument is no literal."""
    for node in ast.parse(file.read_text(encoding="utf-8"), str(file)).body:
        for decorator in node.decorator_list if isinstance(node, ast.ClassDef) else ():
            if isinstance(node, ast.ClassDef) and isinstance(decorator, ast.Call):
                called = _called(decorator)
                for name, facts in _facts(decorator, called) if called in DECORATORS else ():
                    _refuse_name(DECORATORS[called], name, decorator.lineno)
                    yield Entry(DECORATORS[called], name, file, module, node.name, built_in, facts)


def _called(call: ast.Call) -> str:
    """method(...) and vlbench.method.method(...) are both "method"."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _facts(call: ast.Call, decorator: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, literal arguments) of a decorator: the name is its first argument, or each Card's name=."""
    if decorator == "family":
        for card in call.args:
            if not isinstance(card, ast.Call):
                raise ValueError(f"line {card.lineno}: each argument of family() must be written out as Card(...)")
            facts = _keywords(card, (*REQUIRED["family"], "name"))
            yield str(facts["name"]), facts
        return
    if not call.args or not isinstance(call.args[0], ast.Constant):
        raise ValueError(f"line {call.lineno}: the name must be a literal, the decorator's first argument")
    name = str(call.args[0].value)
    yield name, {**_keywords(call, REQUIRED[decorator]), "name": name}


def _keywords(call: ast.Call, required: Sequence[str]) -> dict[str, Any]:
    """The keyword arguments. Raises ValueError where one is no literal, or a required one is missing."""
    facts: dict[str, Any] = {}
    for keyword in call.keywords:
        try:
            facts[str(keyword.arg)] = _literal(keyword.value)
        except (ValueError, TypeError):
            raise ValueError(f"line {keyword.value.lineno}: {keyword.arg or '**'}= must be a literal") from None
    lacking = [key for key in required if key not in facts]
    if lacking:
        raise ValueError(f"line {call.lineno}: {', '.join(key + '=' for key in lacking)} is missing")
    return facts


def _literal(node: ast.expr) -> Any:
    """A literal, or a call with literal keywords (ImageSpec(size=64)) as a dict of them."""
    if isinstance(node, ast.Call) and not node.args:
        return {str(k.arg): _literal(k.value) for k in node.keywords}
    return ast.literal_eval(node)


def _refuse_name(kind: Kind, name: str, line: int) -> None:
    """Names are words of the command line and parts of file names; a method's is also the prefix in METHOD.OPTION=."""
    legal = r"[A-Za-z0-9][\w-]*" if kind == "methods" else r"[A-Za-z0-9][\w.-]*"
    if not re.fullmatch(legal, name) or (kind == "methods" and name in RESERVED):
        raise ValueError(f"line {line}: {name!r} cannot be a name: use letters, digits, _ and -")


def source_files(file: Path, module: str) -> list[Path]:
    """The file, and those that it imports from its own package or folder, and those that they import."""
    found: set[Path] = set()
    todo = [file]
    above = file.resolve().parents
    top = above[min(len(module.split(".")) - (file.name != "__init__.py"), len(above) - 1)]
    package = module.split(".")[0]
    while todo:
        one = todo.pop().resolve()
        if one in found or not one.is_file():
            continue
        found.add(one)
        with contextlib.suppress(SyntaxError):  # whoever imports it is told
            for node in ast.walk(ast.parse(one.read_bytes(), str(one))):
                todo += _imported(node, one, top, package)
    return sorted(found)


def _imported(node: ast.AST, file: Path, top: Path, package: str) -> list[Path]:
    """Candidates for the files that an import statement reads, of the plug-in's own code."""
    names: list[Path] = []
    if isinstance(node, ast.ImportFrom):
        start = node.module or ""
        if node.level:
            base = file.parents[node.level - 1].joinpath(*filter(None, start.split(".")))
        elif start.split(".")[0] == package != "vlbench":
            base = top.joinpath(*start.split("."))
        else:
            return []
        names = [base, *(base / alias.name for alias in node.names)]
    elif isinstance(node, ast.Import) and package != "vlbench":
        dotted = [alias.name.split(".") for alias in node.names]
        names = [top.joinpath(*parts) for parts in dotted if parts[0] == package]
    return [path for name in names for path in (name.with_name(name.name + ".py"), name / "__init__.py")]


@cache
def uncommitted() -> frozenset[Path]:
    """The plug-in files of this checkout that git does not hold as they are. Empty where there is no checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return frozenset()
    command = ["git", "--no-optional-locks", "-C", str(root), "status", "--porcelain", "-z", "--untracked-files=all"]
    try:
        told = subprocess.run([*command, "--", *FOLDERS.values()], capture_output=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return frozenset()
    # "XY path", NUL; the old name of a renamed file stands alone and does no harm.
    return frozenset(root / line[3:] for line in told.stdout.decode("utf-8", "replace").split("\0") if line)


def _import(entry: Entry) -> ModuleType:
    """Import a plug-in file under its module name."""
    if entry.module.split(".")[0] == WORKSPACE_MODULES:
        _open_workspace(entry)
    elif entry.built_in:
        importlib.invalidate_caches()  # a file that `vlbench new` has just written
    return importlib.import_module(entry.module)


def _open_workspace(entry: Entry) -> None:
    """Make vlbench_workspace.methods the entry's folder: no folder enters sys.path, and relative imports work."""
    if not any(isinstance(finder, _WorkspaceFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WorkspaceFinder())
    name = entry.module.rpartition(".")[0]
    package = sys.modules.get(name)
    if package is not None and list(package.__path__) != [str(entry.file.parent)]:
        for module in [m for m in sys.modules if m.startswith(name + ".")]:
            del sys.modules[module]
    for each, path in ((WORKSPACE_MODULES, []), (name, [str(entry.file.parent)])):
        package = sys.modules.setdefault(each, ModuleType(each))
        package.__path__ = path


class _WorkspaceFinder(MetaPathFinder):
    """Finds vlbench_workspace.FOLDER.FILE in the folder that _open_workspace set."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        parts = fullname.split(".")
        if parts[0] != WORKSPACE_MODULES or len(parts) != 3 or not path:
            return None
        file = Path(path[0]) / f"{parts[2]}.py"
        return importlib.util.spec_from_file_location(fullname, file, loader=_FromSource(fullname, str(file)))


class _FromSource(SourceFileLoader):
    """Compiles the source itself: bytecode caches go by whole seconds and would hide a quick edit, whose digest has
    changed; and no __pycache__ appears in the user's folder."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)
