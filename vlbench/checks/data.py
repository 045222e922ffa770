"""`vlbench data where` and `vlbench data verify`: where the data are, and whether they are intact.

Intact means: nothing that a task names as missing, annotations that its own reader reads, every image and label map
there (and, with --images, decodable), and files of the mini world that are what its generator makes.
"""

from __future__ import annotations

import json as jsonlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..cell.worlds import DRAWN, compared
from ..errors import UserError, did_you_mean
from ..images.maps import LabelMap
from ..plugins.entry import Entry
from ..plugins.table import table
from ..plugins.workspace import WORKSPACE_FILE, named_roots, workspace
from ..task import Sample, Task

if TYPE_CHECKING:
    from ..machine.ui import Screen
    from ..mini.world import World

KEYS = ("task", "split", "suite")
SHOWN = 5  # files that a line names
AT_ONCE = 1000  # images decoded between two reports of progress


class Labelled(NamedTuple):
    """A label map, and the image it is of."""

    label: LabelMap
    image: Path


Files = dict[Path, Labelled | None]  # None: an image


@dataclass
class Split:
    """One split of one task. images: distinct files. problems: why it is not intact. missing: its files are not there,
    which is no damage."""

    task: str
    split: str
    samples: int = 0
    images: int = 0
    clusters: int = 0
    problems: list[str] = field(default_factory=list)
    missing: bool = False


@dataclass
class Root:
    """One data folder, with all tasks that read it. asked: whether one of them was named, so that a folder nobody has
    configured counts as a fault."""

    name: str
    folder: str
    tasks: list[str]
    asked: bool
    splits: list[Split] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    images: int = 0

    @property
    def intact(self) -> bool:
        if not self.folder:
            return not self.asked
        return not self.problems and not any(split.problems for split in self.splits)

    @property
    def state(self) -> str:
        """ok; incomplete where some splits are not there and the others are whole; else damaged."""
        if self.intact:
            return "ok"
        whole = not self.problems and all(split.missing or not split.problems for split in self.splits)
        return "incomplete" if whole and any(not split.problems for split in self.splits) else "damaged"


# Where -------------------------------------------------------------------------------------------------------------


def print_where(*, json: bool) -> None:
    """Every root that a task reads, the folder it stands for, and the tasks."""
    roots = [Root(name, named_roots().get(name, ""), tasks, asked=False) for name, tasks in _tasks_by_root().items()]
    weights = named_roots().get("weights", "")
    from ..mini.world import worlds_folder

    cache = str(worlds_folder())
    if json:
        rows = [{"root": r.name, "folder": r.folder, "tasks": r.tasks, "there": _there(r.folder)} for r in roots]
        print(jsonlib.dumps({"roots": rows, "weights": weights, "mini": cache}, indent=1))
        return
    width = max(len(name) for name in [*(r.name for r in roots), "weights", "mini"])
    for root in roots:
        print(f"{root.name:<{width}}  {_told(root.folder)}  ({', '.join(root.tasks)})")
    print(f"{'weights':<{width}}  {_told(weights) if weights else 'no folder: the hub and its cache'}")
    print(f"{'mini':<{width}}  {cache}")
    space = workspace()
    file = space.folder / WORKSPACE_FILE
    print(f"{file if space.present else f'{file} (not there yet)'} names them in [roots]; so does VLBENCH_DATA.")


def _told(folder: str) -> str:
    return f"{folder}{'' if _there(folder) else ' (does not exist)'}" if folder else "no root"


def _there(folder: str) -> bool:
    return bool(folder) and Path(folder).is_dir()


def _tasks_by_root() -> dict[str, list[str]]:
    places: dict[str, list[str]] = defaultdict(list)
    for entry in table("tasks").entries.values():
        places[_root_of(entry)].append(entry.name)
    return dict(sorted(places.items()))


def _root_of(entry: Entry) -> str:
    return str(entry.facts.get("data") or entry.name)


# Verify ------------------------------------------------------------------------------------------------------------


def verify(words: Mapping[str, str], screen: Screen, *, images: bool) -> list[Root]:
    """Look at what `words` name (task=A,B split=A,B suite=mini; without them at everything). Raises UserError for
    wrong words."""
    if wrong := [key for key in words if key not in KEYS]:
        raise UserError(f"{wrong[0]}= is not known here. {did_you_mean(wrong[0], KEYS)}")
    names = words["task"].split(",") if "task" in words else []
    entries = [table("tasks").get(name) for name in names] or list(table("tasks").entries.values())
    if words.get("suite", "full") not in ("mini", "full"):
        raise UserError(f"suite={words['suite']} should be mini or full.")
    if words.get("suite") == "mini":
        return [_mini(world, tasks, screen) for world, tasks in _worlds(entries, names)]
    splits = _known_splits(words["split"].split(","), entries) if "split" in words else ()
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[_root_of(entry)].append(entry)
    return [_verify_root(name, group, splits, bool(names), screen, images) for name, group in sorted(groups.items())]


def _known_splits(names: list[str], entries: Sequence[Entry]) -> list[str]:
    splits = {split for entry in entries for split in _splits_of(entry.load())}
    if wrong := [name for name in names if name not in splits]:
        raise UserError(f"split={wrong[0]} is none of these tasks'. {did_you_mean(wrong[0], splits)}")
    return names


def _splits_of(cls: type[Task]) -> list[str]:
    return list(dict.fromkeys((*cls.roles().values(), *cls.report_splits())))


def _verify_root(
    name: str, entries: Sequence[Entry], splits: Sequence[str], asked: bool, screen: Screen, images: bool
) -> Root:
    root = Root(name, named_roots().get(name, ""), [entry.name for entry in entries], asked)
    if not root.folder:
        return root
    if not _there(root.folder):
        root.problems.append(f"{root.folder} does not exist")
        return root
    files: Files = {}
    exists = _Listing()
    for entry in entries:
        cls = entry.load()
        task: Task = cls(Path(root.folder), cls.Options())
        for split in _splits_of(cls):
            if not splits or split in splits:
                screen.say(f"reading {entry.name}/{split}")
                root.splits.append(_verify_split(task, split, exists, files))
    root.images = sum(label is None for label in files.values())
    if images:
        root.problems += _decoded(files, screen)
    return root


def _verify_split(task: Task, split: str, exists: _Listing, files: Files) -> Split:
    """One split. Adds its files that exist to `files`, with their label where they are label maps."""
    report = Split(task.name, split)
    try:
        report.problems += task.missing(split)
        if report.problems:
            report.missing = True
            return report
        samples = task.samples(split)
        if split in task.report_splits():
            task.settings(split)
    except UserError as error:
        report.problems += str(error).splitlines()
        return report
    report.problems += task.remarks(split)
    report.samples, report.clusters = len(samples), _clusters(samples)
    mine = _files(samples)
    report.images = sum(label is None for label in mine.values())
    absent = [path for path in mine if not exists(path)]
    strange = [path for path in absent if exists.as_something_else(path)]
    if absent := [path for path in absent if path not in strange]:
        report.problems.append(f"{_count(absent, 'file')} of its samples {_are(absent)} not there: {_some(absent)}")
    if strange:
        what = "no file but a pipe, a socket or a device" if len(strange) == 1 else "pipes, sockets or devices"
        report.problems.append(f"{_count(strange, 'image')} of its samples {_are(strange)} {what}: {_some(strange)}")
    files.update({path: label for path, label in mine.items() if exists(path)})
    if not samples and split != task.roles().get("select"):  # cut from a small train split it may be empty
        report.problems.append("it has no samples")
    return report


def _files(samples: Iterable[Sample]) -> Files:
    files: Files = {}
    for sample in samples:
        files.update(dict.fromkeys(sample.images))
        if isinstance(sample.target, LabelMap):
            files[sample.target.path] = Labelled(sample.target, sample.images[0])
    return files


def _clusters(samples: Sequence[Sample]) -> int:
    named = {sample.cluster for sample in samples if sample.cluster}
    return len(named) + sum(not sample.cluster for sample in samples)


class _Listing:
    """Whether a file exists, from one listing of its folder: 1.3 million questions to a network disk take minutes. The
    listing says its kind, too; what a link leads to is not asked."""

    def __init__(self) -> None:
        self.folders: dict[Path, dict[str, bool]] = {}  # name -> whether it is a file or a link

    def __call__(self, path: Path) -> bool:
        return self._listed(path.parent).get(path.name, False)

    def as_something_else(self, path: Path) -> bool:
        return not self._listed(path.parent).get(path.name, True)

    def _listed(self, folder: Path) -> dict[str, bool]:
        if folder not in self.folders:
            try:
                with os.scandir(folder) as entries:
                    kinds = {e.name: e.is_symlink() or e.is_file(follow_symlinks=False) for e in entries}
            except OSError:
                kinds = {}
            self.folders[folder] = kinds
        return self.folders[folder]


def _decoded(files: Files, screen: Screen) -> list[str]:
    """Decode every file; one problem for those that do not, one for label maps that are not of their images' sizes."""
    sizes: dict[Path, tuple[int, ...]] = {}  # height, width

    def attempt(path: Path) -> str:
        try:
            sizes[path] = _size(path, files[path])
        except OSError as error:
            return str(error)
        return ""

    todo, bad = list(files), []
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        for start in range(0, len(todo), AT_ONCE):
            bad += [problems for problems in pool.map(attempt, todo[start : start + AT_ONCE]) if problems]
            screen.progress("decode", min(start + AT_ONCE, len(todo)), len(todo), f"{len(bad)} bad" if bad else "")
    problems = [f"{_count(bad, 'file')} {'does' if len(bad) == 1 else 'do'} not decode: {_some(bad)}"] if bad else []
    pairs = [(path, one.image) for path, one in files.items() if one]
    other = [m for m, image in pairs if m in sizes and image in sizes and sizes[m] != sizes[image]]
    if other:
        problems.append(f"{_count(other, 'label map')} {_are(other)} not of the size of the image: {_some(other)}")
    return problems


def _size(path: Path, labelled: Labelled | None) -> tuple[int, ...]:
    """Height and width of a file that is decoded. Raises OSError where it does not decode."""
    from ..images.maps import read_map
    from ..images.pipeline import decode

    return tuple(decode(path).shape[1:]) if labelled is None else read_map(labelled.label).shape


def _count(items: Sequence[object], what: str) -> str:
    return f"{len(items):,} {what}{'' if len(items) == 1 else 's'}"


def _are(items: Sequence[object]) -> str:
    return "is" if len(items) == 1 else "are"


def _some(items: Sequence[object]) -> str:
    return ", ".join(map(str, items[:SHOWN])) + (f" and {len(items) - SHOWN:,} more" if len(items) > SHOWN else "")


# The mini world ----------------------------------------------------------------------------------------------------


def _worlds(entries: Sequence[Entry], names: Sequence[str]) -> list[tuple[World, list[str]]]:
    """Each world with its tasks. Raises UserError where a task was named that suite=mini has no data for."""
    from ..plugins.worlds import worlds

    by_task = worlds(entries)
    if lacking := [name for name in names if name not in by_task]:
        hint = did_you_mean(lacking[0], worlds())
        raise UserError(f"suite=mini has no data for task={lacking[0]}. {hint}")
    places: dict[str, tuple[World, list[str]]] = {}
    for task, world in by_task.items():
        places.setdefault(world.name, (world, []))[1].append(task)
    return list(places.values())


def _mini(world: World, tasks: list[str], screen: Screen) -> Root:
    """Build it anew beside itself, which checks the pinned digest, and compare every file."""
    from ..mini.world import worlds_folder

    folder = worlds_folder() / world.name
    report = Split(world.name, "all")
    root = Root(f"mini/{world.name}", str(folder), tasks, asked=False)
    if not folder.is_dir():
        root.folder = ""
        return root
    files = compared(world, folder, screen.building)
    root.images = report.images = sum(Path(name).suffix.lower() in DRAWN for name in files.made)
    for paths, what in (
        (files.missing, "not there"),
        (files.differing, "not what its generator makes"),
        (files.strays, "no part of it"),
    ):
        if paths:
            report.problems.append(f"{_count(paths, 'file')} {_are(paths)} {what}: {_some(paths)}")
    if report.problems:
        report.problems.append(f"delete {folder}: it is built anew when it is needed")
    root.splits.append(report)
    return root


# Telling -----------------------------------------------------------------------------------------------------------


def print_roots(roots: Sequence[Root], *, json: bool) -> None:
    if json:
        print(jsonlib.dumps([{**asdict(root), "intact": root.intact, "state": root.state} for root in roots], indent=1))
        return
    for root in roots:
        for line in _lines(root):
            print(line)


def _lines(root: Root) -> list[str]:
    if not root.folder:
        return [_without_folder(root)]
    head = f"{root.state:<7}  {root.name}  {root.folder}: {_totals(root)}"
    if root.state == "incomplete":
        lacking = [f"{s.task}/{s.split}" for s in root.splits if s.problems]
        whole = [f"{s.task}/{s.split}" for s in root.splits if not s.problems]
        head += f"; missing: {', '.join(lacking)}; intact: {', '.join(whole)}"
    lines = [head, *(f"  {problem}" for problem in root.problems)]
    for split in root.splits:
        if split.samples or split.problems:
            lines.append(f"  {split.task}/{split.split}: {_numbers(split)}".rstrip())
        lines += [f"    {problem}" for problem in split.problems]
    return lines


def _without_folder(root: Root) -> str:
    if root.name.startswith("mini/"):
        return f"ok       {root.name}  not built yet: the first run that needs it builds it"
    where = workspace().folder / WORKSPACE_FILE
    tasks = ", ".join(root.tasks)
    return f'no root  {root.name}  ({tasks}): add {root.name} = "/path/to/{root.name}" to [roots] in {where}'


def _totals(root: Root) -> str:
    if root.name.startswith("mini/"):
        return _count(range(root.images), "image")
    samples = sum(split.samples for split in root.splits)
    parts = [_count(root.tasks, "task"), _count(root.splits, "split"), _count(range(samples), "sample")]
    return ", ".join([*parts, f"{root.images:,} distinct images"])


def _numbers(split: Split) -> str:
    if not split.samples:
        return ""
    counts = (("sample", split.samples), ("image", split.images), ("cluster", split.clusters))
    return ", ".join(_count(range(number), what) for what, number in counts)
