"""Oracle: the code that the pages are made of, and the committed results that the README quotes."""

from __future__ import annotations

import importlib.util
import io
import re
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from tests.docs.pages import ROOT
from vlbench.leaderboard.excerpt import Excerpt
from vlbench.leaderboard.rows import load_results, rows
from vlbench.plugins.table import table


@pytest.fixture(scope="module")
def site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vlbench_docs_site", ROOT / "docs" / "_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_plug_in_with_its_help(site: ModuleType) -> None:
    pages = site.generated()
    for kind in ("methods", "tasks", "models"):
        assert [name for name in table(kind).entries if f"`{name}`" not in pages[kind]] == []  # type: ignore[arg-type]
    assert "recipe=upop-code" in pages["methods"]
    assert "return weight.abs().mul_(statistics.norm.to(weight.dtype))" in pages["methods"]
    assert "/data/coco" in pages["tasks"]
    assert "## data verify" in pages["commands"]
    assert "::: vlbench.task" in pages["contracts"]


def test_a_file_is_shown_as_it_is(site: ModuleType) -> None:
    shown = site.on_page_markdown((ROOT / "docs" / "export.md").read_text(encoding="utf-8"))
    assert (ROOT / "registry" / "loaders" / "deit.py").read_text(encoding="utf-8") in shown


def test_the_readme_quotes_what_a_run_prints() -> None:
    """The committed results, of which the two marked rows were run: the block is the output, letter by letter."""
    records = [r for r in load_results(ROOT / "leaderboards" / "results") if r.task == "vqav2" and r.suite == "mini"]
    board = [row for row in rows(records) if row.model == "blip-vqa-mini" and not row.flags]
    upop = next(row for row in board if row.method == "upop" and not row.options and row.sparsity < 0.6)
    dense = next(row for row in board if row.dense)
    stream = io.StringIO()
    excerpt = Excerpt(upop, board, {upop.config, dense.config}, file="runs/tables/mini/vqav2.csv")
    excerpt.show(Console(file=stream, width=200))
    printed = [line.rstrip() for line in stream.getvalue().splitlines()]
    assert "\n".join(printed) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_links_to_what_is_there() -> None:
    """mkdocs looks at the pages of docs/ alone."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert len(links) > 20
    for link in links:
        file, _, anchor = link.partition("#")
        assert (ROOT / file).is_file(), link
        heads = re.findall(r"^#+ (.+)$", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^\w-]", "", head.lower().replace(" ", "-")) for head in heads], link


def test_pages_that_no_one_named_are_in_the_navigation(site: ModuleType) -> None:
    mkdocs = pytest.importorskip("mkdocs.structure.files")
    config = type("Config", (), {"nav": [{"Start": ["index.md"]}], "site_dir": "", "use_directory_urls": False})()
    files = mkdocs.Files([mkdocs.File(name, str(Path("docs")), "", False) for name in ("index.md", "security.md")])
    site.generated = dict
    site.on_files(files, config)
    assert config.nav[1] == {"More": ["security.md"]}
