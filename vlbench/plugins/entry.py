"""One name of a table: where it is declared, and how it is imported when it is used."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, TypeVar

from ..errors import UserError
from .kinds import Kind
from .moved import moved_imports
from .source import source_files, uncommitted
from .workspace import WORKSPACE_MODULES, announce

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
    digests = _READ.get()
    if digests is None:
        return read()
    if key not in digests:
        digests[key] = read()
    value: T = digests[key]
    return value


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
        if self.built_in and not uncommitted():
            return None
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
            if moved := moved_imports(self.file):
                what = f"it was written for an older vlbench, {what}"
                raise UserError("\n".join([f"{self.file} cannot be used ({what}):", *moved])) from error
            raise UserError(
                f"{self.file} cannot be used, it raises on import ({what}): mend or move the file."
            ) from error


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
    announce(entry.file.parent.parent)
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
