"""The three tables: what is found, what is refused, and what makes the version of a file outside the package."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import method_file
from vlbench.errors import UserError
from vlbench.plugins import source
from vlbench.plugins.entry import Entry
from vlbench.plugins.moved import MODULES, NAMES
from vlbench.plugins.source import source_files, uncommitted
from vlbench.plugins.table import forget, table
from vlbench.plugins.workspace import workspace


@pytest.fixture(autouse=True)
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty workspace that is the current folder."""
    (tmp_path / "vlbench.toml").write_text("")
    (tmp_path / "methods").mkdir()
    monkeypatch.chdir(tmp_path)
    forget()
    yield tmp_path
    forget()


def plug(box: Path, name: str, text: str) -> Path:
    file = box / "methods" / name
    file.write_text(text, encoding="utf-8")
    forget()
    return file


# The workspace -----------------------------------------------------------------------------------------------------


def test_files_of_the_workspace_stand_beside_the_built_in_ones(box: Path) -> None:
    file = plug(box, "mine.py", method_file("mine"))
    entry = table("methods").get("mine")
    assert (entry.file, entry.built_in) == (file, False)
    assert entry.facts["title"] == "Mine"
    assert "magnitude" in table("methods").entries
    assert entry.load().name == "mine"


def test_a_workspace_is_found_from_the_folders_below_it(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plug(box, "mine.py", method_file("mine"))
    (box / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(box / "a" / "b")
    forget()
    assert workspace().folder == box
    assert "mine" in table("methods").entries


def test_no_file_is_read_without_a_workspace_file(box: Path) -> None:
    plug(box, "mine.py", method_file("mine"))
    (box / "vlbench.toml").unlink()
    forget()
    assert "mine" not in table("methods").entries


def test_roots_are_relative_to_the_workspace_file(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (box / "vlbench.toml").write_text('[roots]\ncoco = "data/coco"\nweights = "~/w"\nimagenet = "/in1k"\n')
    (box / "below").mkdir()
    monkeypatch.chdir(box / "below")
    monkeypatch.setenv("HOME", "/home/me")
    assert workspace().roots == {"coco": str(box / "data/coco"), "weights": "/home/me/w", "imagenet": "/in1k"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[roots\n", "cannot be read as TOML"),
        ("[root]\ncoco = 'x'\n", "has 'root', but knows only the table [roots]"),
        ("roots = 3\n", "should hold lines like"),
        ("[roots]\ncoco = 3\n", "should hold lines like"),
    ],
)
def test_a_wrong_workspace_file_is_named(box: Path, text: str, sentence: str) -> None:
    (box / "vlbench.toml").write_text(text)
    with pytest.raises(UserError, match=r"vlbench\.toml") as told:
        workspace()
    assert sentence in str(told.value)


def test_a_file_may_use_helpers_beside_it(box: Path) -> None:
    plug(box, "_helper.py", "SCALE = 3.0\n")
    plug(box, "mine.py", method_file("mine", before="from ._helper import SCALE\n"))
    assert sys.modules[table("methods").get("mine").load().__module__].SCALE == 3.0
    assert list(table("methods").broken) == []


def test_nothing_is_written_beside_the_users_files(box: Path) -> None:
    plug(box, "_helper.py", "SCALE = 3.0\n")
    plug(box, "mine.py", method_file("mine", before="from ._helper import SCALE\n"))
    table("methods").get("mine").load()
    assert sorted(p.name for p in (box / "methods").iterdir()) == ["_helper.py", "mine.py"]


def test_two_workspaces_with_files_of_one_name(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their modules have one name as well; the second import must not give the first file's class."""
    plug(box, "mine.py", method_file("mine", title="First"))
    first = table("methods").get("mine").load()
    other = box / "other"
    (other / "methods").mkdir(parents=True)
    (other / "vlbench.toml").write_text("")
    monkeypatch.chdir(other)
    table.cache_clear()
    (other / "methods" / "mine.py").write_text(method_file("mine", constant=7.0))
    second = table("methods").get("mine").load()
    assert sys.modules[second.__module__].CONSTANT == 7.0
    assert second is not first


def test_an_edit_is_seen_at_once(box: Path) -> None:
    """Python's bytecode caches go by size and whole seconds: two quick edits of one length look alike to them."""
    found = []
    for constant in (1.0, 2.0, 3.0):
        plug(box, "mine.py", method_file("mine", constant=constant))
        cls = table("methods").get("mine").load()
        found.append(sys.modules[cls.__module__].CONSTANT)
    assert found == [1.0, 2.0, 3.0]


# What is wrong with a file -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("def f(:\n", "SyntaxError"),
        ('N = "x"\n@method(N, title="T", role="pruner")\nclass A: ...\n', "the name must be a literal"),
        ('@method("x", title="T" + "U", role="pruner")\nclass A: ...\n', "line 1: title= must be a literal"),
        ('F = {}\n@method("x", **F)\nclass A: ...\n', "line 2: **= must be a literal"),
        ('@method("x", role="pruner")\nclass A: ...\n', "line 1: title= is missing"),
        ('@method("a+b", title="T", role="pruner")\nclass A: ...\n', "'a+b' cannot be a name"),
        ('@method("task", title="T", role="pruner")\nclass A: ...\n', "'task' cannot be a name"),
        ('@chain("x", title="T")\nclass A: ...\n', "line 1: links= is missing"),
        ("x = 1\n", "it registers nothing: a class of it should be decorated with @method(...)"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_the_others_work(box: Path, text: str, why: str) -> None:
    file = plug(box, "bad.py", text)
    rows = table("methods")
    assert why in rows.broken[str(file)]
    assert "magnitude" in rows.entries
    with pytest.raises(UserError, match="could not be read") as told:
        rows.get("bad")
    assert str(file) in str(told.value)


def test_bytes_that_are_no_text(box: Path) -> None:
    file = box / "methods" / "bad.py"
    file.write_bytes(b"\xff\xfe\xfa")
    assert "UnicodeDecodeError" in table("methods").broken[str(file)]


@pytest.mark.parametrize("line", ["1 / 0", "import no_such_module", "raise SystemExit(3)", "from ._none import x"])
def test_a_file_that_raises_on_import_is_named_and_the_others_work(box: Path, line: str) -> None:
    file = plug(box, "mine.py", method_file("mine", before=line))
    with pytest.raises(UserError, match="raises on import") as told:
        table("methods").get("mine").load()
    assert str(file) in str(told.value)
    assert table("methods").get("magnitude").load().name == "magnitude"
    plug(box, "mine.py", method_file("mine"))  # mended: no trace of the failed import is left
    assert table("methods").get("mine").load().name == "mine"


def test_two_files_of_one_name_are_both_named(box: Path) -> None:
    first, second = plug(box, "one.py", method_file("twin")), plug(box, "two.py", method_file("twin"))
    with pytest.raises(UserError, match="'twin' is registered twice") as told:
        table("methods")
    assert str(first) in str(told.value)
    assert str(second) in str(told.value)
    assert table("tasks").entries


def test_a_file_cannot_take_a_built_in_name(box: Path) -> None:
    file = plug(box, "mine.py", method_file("magnitude"))
    with pytest.raises(UserError, match="registered twice") as told:
        table("methods")
    assert str(file) in str(told.value)
    assert "magnitude.py" in str(told.value)


def test_a_decorator_may_be_called_through_its_module(box: Path) -> None:
    text = method_file("mine").replace("@method(", "@vlbench.method.method(")
    plug(box, "mine.py", text.replace("from pydantic", "import vlbench.method\nfrom pydantic"))
    assert table("methods").get("mine").load().name == "mine"


# Tasks and models --------------------------------------------------------------------------------------------------


def test_a_task_without_capability_does_not_stop_the_list(box: Path) -> None:
    (box / "tasks").mkdir()
    (box / "tasks" / "mine.py").write_text('@task("mine", title="T")\nclass A: ...\n')
    forget()
    assert "capability=, metric=, version= is missing" in next(iter(table("tasks").broken.values()))


def test_a_family_has_a_name_for_every_card(box: Path) -> None:
    (box / "registry").mkdir()
    card = 'Card(name="{}", title="T", capabilities=("classify",), checkpoint="c", image=ImageSpec(size=8))'
    text = f"@family({card.format('one')}, {card.format('two')})\nclass A: ...\n"
    (box / "registry" / "mine.py").write_text(text)
    forget()
    assert table("models").get("two").facts["image"] == {"size": 8}
    (box / "registry" / "mine.py").write_text(text.replace("ImageSpec(size=8)", "IMAGE"))
    forget()
    assert "image= must be a literal" in next(iter(table("models").broken.values()))


# Entry points ------------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(box: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path whose modules a distribution announces as plug-ins."""
    site = box / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    return site


def announce(monkeypatch: pytest.MonkeyPatch, **modules: str) -> None:
    group = "vlbench.plugins"
    points = [importlib.metadata.EntryPoint(name, value, group) for name, value in modules.items()]
    own = importlib.metadata.EntryPoints(points)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **kw: own.select(**kw))
    forget()


def test_an_installed_plugin_is_found_and_imported_by_its_name(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = installed / "strangers"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "core.py").write_text("SCALE = 2.0\n")
    text = method_file("theirs", before="from strangers.core import SCALE\n")
    (package / "prune.py").write_text(text)
    announce(monkeypatch, a="strangers.prune:Mine", b="strangers.prune")
    entry = table("methods").get("theirs")
    assert not entry.built_in
    assert entry.load().__module__ == "strangers.prune"
    assert {f.name for f in source_files(entry.file, entry.module)} >= {"prune.py", "core.py"}
    before = entry.digest()
    (package / "core.py").write_text("SCALE = 4.0\n")
    assert entry.digest() != before


def test_broken_installed_plugins_are_named_and_the_others_work(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (installed / "shaky").mkdir()
    (installed / "shaky" / "__init__.py").write_text("1 / 0\n")
    announce(monkeypatch, gone="no_such_distribution.prune", shaky="shaky.prune", absent="json.prune")
    broken = table("methods").broken
    assert "ModuleNotFoundError" in broken["the installed plug-in no_such_distribution.prune"]
    assert "ZeroDivisionError" in broken["the installed plug-in shaky.prune"]
    assert "no such Python file" in broken["the installed plug-in json.prune"]
    assert "magnitude" in table("methods").entries


# Versions ----------------------------------------------------------------------------------------------------------


def test_the_digest_follows_the_file_and_its_helpers(box: Path) -> None:
    def now() -> str | None:
        forget()
        return table("methods").get("mine").digest()

    plug(box, "_helper.py", "SCALE = 3.0\n")
    plug(box, "_other.py", "X = 1\n")
    plug(box, "mine.py", method_file("mine", before="from ._helper import SCALE\n"))
    first = now()
    assert first == now()
    plug(box, "_other.py", "X = 2\n")
    assert first == now()
    plug(box, "_helper.py", "SCALE = 4.0\n")
    second = now()
    assert second != first
    plug(box, "mine.py", method_file("mine", constant=2.0, before="from ._helper import SCALE\n"))
    assert now() not in (first, second)


def test_the_digest_does_not_follow_the_place(box: Path) -> None:
    digests = set()
    for folder in ("here", "there"):
        file = box / folder / "mine.py"
        file.parent.mkdir()
        file.write_text(method_file("mine"))
        digests.add(Entry("methods", "mine", file, "vlbench_workspace.methods.mine", "Mine", False).digest())
    assert len(digests) == 1


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout that stands for the one vlbench runs from."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    root = tmp_path / "checkout"
    for folder in ("vlbench", "methods"):
        (root / folder).mkdir(parents=True)
    monkeypatch.setattr(source, "__file__", str(root / "vlbench" / "plugins" / "source.py"))
    for name in ("clean", "changed"):
        (root / "methods" / f"{name}.py").write_text(method_file(name))
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", str(root), *command], check=True)
    return root


def test_a_built_in_that_git_does_not_hold_goes_by_its_source(checkout: Path) -> None:
    """Or whoever edits a formula in a clone would be given the results of the old one."""
    (checkout / "methods" / "changed.py").write_text(method_file("changed", constant=2.0))
    (checkout / "methods" / "new one.py").write_text(method_file("new"))
    uncommitted.cache_clear()

    def version(file: str) -> str | None:
        return Entry("methods", "x", checkout / "methods" / file, "vlbench.methods.x", "Mine", True).digest()

    assert version("clean.py") is None
    assert version("changed.py") is not None
    assert version("new one.py") is not None


def test_without_a_checkout_built_ins_go_by_their_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "__file__", str(tmp_path / "vlbench" / "plugins" / "source.py"))
    uncommitted.cache_clear()
    assert uncommitted() == frozenset()
    assert table("methods").get("magnitude").digest() is None


def test_a_plug_in_of_the_first_layout_is_told_the_new_paths(box: Path) -> None:
    """Names that moved with their module, names that left it, and the ones that stayed."""
    text = (
        "from vlbench.method import Method, PruneOptions, method\nfrom vlbench.pruning.masks import Keep\n"
        "from vlbench.errors import UserError\n" + method_file("old")
    )
    plug(box, "old.py", text)
    with pytest.raises(UserError) as error:
        table("methods").get("old").load()
    told = str(error.value)
    assert "line 1: write `from vlbench.options import PruneOptions`" in told
    assert "line 2: write `from vlbench.compression.masks import Keep`" in told
    assert "errors" not in told.split("):", 1)[1]


def test_every_new_path_is_there() -> None:
    """Each module of the table exists, and each name is in it."""
    for new in set(MODULES.values()):
        assert importlib.util.find_spec(f"vlbench.{new}") is not None, new
    for old, new in NAMES.items():
        name = old.partition(":")[2]
        assert name in Path(str(importlib.util.find_spec(f"vlbench.{new}").origin)).read_text(), old  # type: ignore[union-attr]
