"""The content of what a cell reads, for its identity; and what learns from the report split under another name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from ..disk.contents import Contents, Progress, digest_of
from ..errors import UserError
from ..images.maps import LabelMap
from ..mini.world import FILES, World, cache_folder, files_below
from ..task import Sample, Task

SHOWN = 3  # names in a message


def silent(done: int, total: int) -> None:
    """No progress wanted."""


def files_of(samples: Iterable[Sample]) -> list[Path]:
    """The files that samples show, and their label maps, each once, in the order in which they come."""
    files: dict[Path, None] = {}
    for sample in samples:
        files.update(dict.fromkeys(sample.images))
        if isinstance(sample.target, LabelMap):
            files[sample.target.path] = None
    return list(files)


def contents() -> Contents:
    """Digests of files, kept in the user's cache."""
    return Contents(cache_folder() / "contents.sqlite")


def content_digest(samples: Iterable[Sample], progress: Progress = silent) -> str:
    """Of everything that the samples show, file by file in their order."""
    files = files_of(samples)
    return digest_of(files, contents().digests(files, progress))


def learnt_digest(task: Task, samples: Sequence[Sample], word: str, progress: Progress = silent) -> str:
    """content_digest of samples that something is learnt from. Raises UserError where one of their images has the bytes
    of an image of the report split, whatever the names of the two. word: what the samples are, for the sentence."""
    report = task.roles()["report"]
    reports = [] if task.missing(report) else task.samples(report)  # it need not be on this machine
    ours, theirs = ([p for s in some for p in s.images] for some in (samples, reports))
    files = files_of(samples)
    digests = contents().digests([*theirs, *files], progress)
    reported = {digests[path]: path for path in reversed(theirs) if digests[path]}
    shared = [path for path in dict.fromkeys(ours) if digests[path] in reported]
    if shared:
        pairs = ", ".join(f"{path} is {reported[digests[path]].name}" for path in shared[:SHOWN])
        raise UserError(
            f"{word} shows {len(shared)} image{'s' if len(shared) > 1 else ''} of the report split {report} of "
            f"{task.name}, byte for byte ({pairs}{', ...' if len(shared) > SHOWN else ''}): what is reported must not "
            "be learnt from. Take them out of the one or of the other."
        )
    return digest_of(files, digests)


@cache
def verify_world(world: World, folder: Path) -> None:
    """Raise UserError, naming files, where the mini world in `folder` is not what was built there, by its list of
    digests; once in a process. (`vlbench submit` does not trust the list and builds the world anew.)"""
    present = files_below(folder)
    wanted = _listed(folder)
    digests = contents().digests(present[name] for name in wanted if name in present)
    wrong = [name for name, sha in wanted.items() if name not in present or digests[present[name]] != sha]
    refuse_other_files(world, folder, sorted({*wrong, *(present.keys() - wanted.keys())}))


def _listed(folder: Path) -> dict[str, str]:
    try:
        return dict(json.loads((folder / FILES).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder / FILES} is damaged: delete {folder}, which is built anew, and run again.") from None


def refuse_other_files(world: World, folder: Path, names: Sequence[str]) -> None:
    """Raise UserError where there are names: files of a mini world that are not what its generator makes."""
    if names:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise UserError(
            f"the mini world in {folder} is not what its pinned digest {world.digest[:12]} stands for "
            f"({', '.join(names[:SHOWN])}{more}): delete that folder, which is built anew, and run again."
        )
