"""Which source files a plug-in consists of: their digest is its version."""

from __future__ import annotations

import ast
import contextlib
import subprocess
from functools import cache
from pathlib import Path

from .kinds import FOLDERS


def source_files(file: Path, module: str) -> list[Path]:
    """The file, and those that it imports from its own package or folder, and those that they import."""
    files: set[Path] = set()
    todo = [file]
    above = file.resolve().parents
    top = above[min(len(module.split(".")) - (file.name != "__init__.py"), len(above) - 1)]
    package = module.split(".")[0]
    while todo:
        source = todo.pop().resolve()
        if source in files or not source.is_file():
            continue
        files.add(source)
        with contextlib.suppress(SyntaxError):  # whoever imports it is told
            for node in ast.walk(ast.parse(source.read_bytes(), str(source))):
                todo += _imported(node, source, top, package)
    return sorted(files)


def _imported(node: ast.AST, file: Path, top: Path, package: str) -> list[Path]:
    """Candidates for the files that an import statement reads, of the plug-in's own code."""
    names: list[Path] = []
    if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "family":
        literals = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
        return [file.with_name(name) for name in literals if isinstance(name, str)]  # files of cards
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
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return frozenset()
    command = ["git", "--no-optional-locks", "-C", str(root), "status", "--porcelain", "-z", "--untracked-files=all"]
    places = [place for folder in FOLDERS.values() for place in (folder, f"vlbench/{folder}")]
    try:
        status = subprocess.run([*command, "--", *places], capture_output=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return frozenset()
    # "XY path", NUL; the old name of a renamed file stands alone and does no harm.
    return frozenset(root / line[3:] for line in status.stdout.decode("utf-8", "replace").split("\0") if line)
