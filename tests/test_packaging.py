"""Oracles: `git ls-files` for what travels, pyproject.toml for what is declared."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

from vlbench.plugins import table as plugins

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# Folder of the checkout -> where it is installed.
INSTALLED = {"vlbench": "vlbench", **{f: f"vlbench/{f}" for f in ("registry", "tasks", "methods", "leaderboards")}}
RUNTIME_EXTRAS = {"parquet", "onnx", "openvino", "gguf", "segmentation", "peft", "ray", "slurm", "plots", "large"}
LIST = """
import json, sys
sys.path.insert(0, sys.argv[1])
from vlbench.plugins.table import table
print(json.dumps({kind: sorted(table(kind).entries) for kind in ("models", "tasks", "methods")}))
"""


def run(*words: str | Path, cwd: Path, **env: str) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(words, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """All files that git tracks and that are there."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs git and a checkout of it (the wheel is compared with `git ls-files`)")
    listed = run("git", "-c", "safe.directory=*", "ls-files", "-z", cwd=ROOT).split("\0")
    return [name for name in listed if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def source(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked files: what stands beside them, or an old egg-info, must not help the build."""
    folder = tmp_path_factory.mktemp("source")
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, made from the sdist, without a network."""
    out = tmp_path_factory.mktemp("dist")
    copy = shutil.copytree(source, out / "source")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, cwd=copy, PIP_NO_INDEX="1")
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_the_wheel_holds_what_git_tracks(tracked: list[str], wheel: Path) -> None:
    wanted = set()
    for name in tracked:
        top, _, rest = name.partition("/")
        if rest and top in INSTALLED:
            wanted.add(f"{INSTALLED[top]}/{rest}")
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name.split("/", 1)[0] + "/"}
    assert sorted(wanted - found) == []
    assert sorted(found - wanted) == []
    assert "vlbench/py.typed" in found


def test_the_wheel_holds_the_weights_of_every_mini_model(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = set(archive.namelist())
    checkpoints = [str(entry.facts["checkpoint"]) for entry in plugins.table("models").entries.values()]
    mini = [c.removeprefix("mini:") for c in checkpoints if c.startswith("mini:")]
    assert mini
    folder = "vlbench/registry/mini"
    assert [n for n in mini if f"{folder}/{n}/model.safetensors" not in found] == []
    assert [n for n in mini if f"{folder}/{n}/config.json" not in found] == []


def test_wheel_and_bare_checkout_list_the_same_plug_ins(source: Path, wheel: Path, tmp_path: Path) -> None:
    """-I -S: no site-packages, so neither an installed vlbench nor any library helps."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    bare = run(sys.executable, "-I", "-S", "-c", LIST, source, cwd=tmp_path)
    installed = run(sys.executable, "-I", "-S", "-c", LIST, tmp_path / "installed", cwd=tmp_path)
    assert json.loads(bare) == json.loads(installed)
    assert "upop" in json.loads(bare)["methods"]


def test_metadata(metadata: Message, wheel: Path) -> None:
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    with zipfile.ZipFile(wheel) as archive:
        licence = next(n for n in archive.namelist() if n.endswith("licenses/LICENSE"))
        assert "Version 2.0, January 2004" in archive.read(licence).decode()
        points = next(n for n in archive.namelist() if n.endswith("entry_points.txt"))
        assert "vlbench = vlbench.cli:main" in archive.read(points).decode()


def test_the_python_version_is_said_the_same_everywhere() -> None:
    assert PROJECT["project"]["requires-python"] == ">=3.11"
    assert PROJECT["tool"]["ruff"]["target-version"] == "py311"
    assert PROJECT["tool"]["mypy"]["python_version"] == "3.11"


def test_extras(metadata: Message) -> None:
    assert set(metadata.get_all("Provides-Extra", [])) == {*RUNTIME_EXTRAS, "dev", "docs", "all"}
    (everything,) = PROJECT["project"]["optional-dependencies"]["all"]
    assert set(re.findall(r"\w+", everything.partition("[")[2])) == RUNTIME_EXTRAS


HARNESSES = ("lmms_eval", "vlmeval")  # they import vlbench/evaluators, and not the other way


def test_every_library_that_is_imported_is_declared() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    lines = [*PROJECT["project"]["dependencies"], *(line for name in RUNTIME_EXTRAS for line in extras[name])]
    declared = {_normal(re.split(r"[^\w.-]", line)[0]) for line in lines}
    owners = importlib.metadata.packages_distributions()
    missing: dict[str, str] = {}
    for file in (path for folder in INSTALLED for path in (ROOT / folder).rglob("*.py")):
        for name in _imported(file) - set(sys.stdlib_module_names) - {"vlbench", *HARNESSES}:
            if not declared & {_normal(owner) for owner in owners.get(name, [name])}:
                missing[name] = str(file.relative_to(ROOT))
    assert missing == {}


def _imported(file: Path) -> set[str]:
    """Top-level names of all absolute imports of a file, also of those inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("words", ["", "list", "--help"])
def test_nothing_heavy_is_imported_before_it_is_needed(words: str, tmp_path: Path) -> None:
    code = f"""
import sys, vlbench
if {words!r}:
    from vlbench.cli import app
    app([{words!r}], standalone_mode=False)
print("heavy:", sorted({{"torch", "transformers", "timm", "numpy", "pandas", "scipy"}} & set(sys.modules)))
"""
    told = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert told.splitlines()[-1] == "heavy: []"
