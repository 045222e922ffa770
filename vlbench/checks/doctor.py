"""`vlbench doctor`: what this machine has, and what is missing for which task, before a run says so."""

from __future__ import annotations

import importlib.metadata
import json as jsonlib
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import UserError
from ..machine.device import computing_device, free_bytes, product
from ..mini.world import cache_folder
from ..plugins.entry import Entry
from ..plugins.table import table
from ..plugins.workspace import WORKSPACE_FILE, named_roots, workspace

PACKAGES = ("torch", "transformers", "timm", "open_clip_torch", "safetensors", "numpy", "pandas")
NO_PRODUCT = ("dev", "docs", "all")  # extras that no command asks for
_EXTRA = re.compile(r"""extra\s*==\s*["']([^"']+)["']""")


@dataclass
class Report:
    """Facts by heading, and of each task what it lacks here (an empty list: nothing)."""

    machine: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    extras: dict[str, str] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, list[str]] = field(default_factory=dict)


def doctor(runs: Path) -> Report:
    """Looks, and changes nothing. runs: the folder that runs are written to."""
    return Report(_machine(runs), _packages(), _extras(), _places(runs), _tasks())


def print_report(runs: Path, *, json: bool) -> None:
    report = doctor(runs)
    if json:
        print(jsonlib.dumps(asdict(report), indent=1))
        return
    for heading in ("machine", "packages", "extras", "places"):
        facts: dict[str, str] = getattr(report, heading)
        width = max(map(len, facts))
        print(heading)
        for name, fact in facts.items():
            print(f"  {name:<{width}}  {fact}")
    ready = [name for name, lacks in report.tasks.items() if not lacks]
    print(f"tasks whose data are here\n  {', '.join(ready) or 'none; suite=mini needs none'}")
    lacking: dict[str, list[str]] = {}
    for name, lacks in report.tasks.items():
        for line in lacks:
            lacking.setdefault(line, []).append(name)
    if lacking:
        print("what the others lack")
    for line, names in lacking.items():
        print(f"  {', '.join(names)}: {line}")


def _machine(runs: Path) -> dict[str, str]:
    facts = {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}",
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        facts["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    try:
        device = computing_device()
        free = free_bytes(device)
        facts["device"] = product(device) + ("" if free is None else f", {free / 2**30:.1f} GiB free")
    except UserError as error:  # --device or VLBENCH_DEVICE names one that is not there
        facts["device"] = str(error)
    facts["java"] = _java()
    facts["disk"] = f"{shutil.disk_usage(_there(runs)).free / 2**30:.1f} GiB free for {runs.absolute()}"
    return facts


def _java() -> str:
    """METEOR and SPICE are Java programs."""
    if shutil.which("java") is None:
        return "none: METEOR and SPICE are not measured (install a Java runtime, 8 or later)"
    try:
        answer = subprocess.run(["java", "-version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"does not start ({error})"
    return (answer.stderr or answer.stdout).strip().splitlines()[0]


def _packages() -> dict[str, str]:
    facts = {"vlbench": __version__, "python": f"{platform.python_version()} ({sys.executable})"}
    return {**facts, **{name: _version(name) or "not installed" for name in PACKAGES}}


def _extras() -> dict[str, str]:
    """Extra -> installed, or the command that installs it."""
    wanted: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires("vlbench") or []:
        if match := _EXTRA.search(requirement):
            name = re.split(r"[\s;<>=!~\[(]", requirement, maxsplit=1)[0]
            wanted.setdefault(match[1], []).append(name)
    facts = {}
    for extra, names in sorted(wanted.items()):
        if extra not in NO_PRODUCT:
            lacking = [name for name in names if name != "vlbench" and not _version(name)]
            facts[extra] = f"lacks {', '.join(lacking)}: pip install 'vlbench[{extra}]'" if lacking else "installed"
    return facts


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _places(runs: Path) -> dict[str, str]:
    space = workspace()
    file = space.folder / WORKSPACE_FILE
    hub = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"
    facts = {
        "workspace": str(file) if space.present else f"none ({file} would be one)",
        "runs": _state(runs.absolute()), "cache": _state(cache_folder()), "hub": _state(Path(hub)),
    }  # fmt: skip
    return facts | {f"root {name}": _state(Path(folder)) for name, folder in sorted(named_roots().items())}


def _state(folder: Path) -> str:
    return str(folder) if folder.is_dir() else f"{folder} (not there)"


def _there(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())


def _tasks() -> dict[str, list[str]]:
    roots = named_roots()
    return {entry.name: _lacks(entry, roots.get(str(entry.facts.get("data") or entry.name)))
            for entry in table("tasks").entries.values()}  # fmt: skip


def _lacks(entry: Entry, root: str | None) -> list[str]:
    """What one task lacks of its report split, and metrics that are not measured here."""
    name = str(entry.facts.get("data") or entry.name)
    if root is None:
        return [f"no root {name}: name its folder in {WORKSPACE_FILE} or by VLBENCH_DATA"]
    try:
        cls: Any = entry.load()
        task = cls(Path(root), cls.Options())
        return [*task.missing(cls.roles()["report"]), *dict.fromkeys(task.unmeasured().values())]
    except UserError as error:
        return str(error).splitlines()[:1]
