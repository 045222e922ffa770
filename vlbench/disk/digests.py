"""Digests of files and folders by content."""

from __future__ import annotations

import fnmatch
import hashlib
from pathlib import Path

ABOUT = (".*", "*.md", "LICENSE*")  # files beside a model that do not change what it computes


MANIFEST = "vlbench.json"  # of a compressed model's folder


def file_digest(path: Path) -> str:
    """sha256 of a file's content; of a folder: of its files' names and contents, but for what is about the model and
    not of it (README.md, licences, hidden files), so that neither a model card nor the folder's name counts."""
    if path.is_file():
        return _content(path).hexdigest()
    sha = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name = file.relative_to(path).as_posix()
        if not any(fnmatch.fnmatch(part, about) for part in name.split("/") for about in ABOUT):
            sha.update(f"{name}\0".encode() + _content(file).digest())
    return sha.hexdigest()


def _content(path: Path) -> hashlib._Hash:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256")
