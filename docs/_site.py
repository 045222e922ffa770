"""What mkdocs asks while it builds the site: pages that are made from the code, files that pages show, and the rest of
the navigation. Nothing of the reference is written by hand, so that it cannot say what is no longer so."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[1]
MORE = "More"
SHOWN_FILE = re.compile(r"^<!-- file: (\S+) -->$", re.MULTILINE)
CONTRACTS = {
    "Methods": ("vlbench.method", "vlbench.job", "vlbench.options", "vlbench.pruning.scoring"),
    "Tasks": ("vlbench.task",),
    "Models": ("vlbench.model", "vlbench.structure", "vlbench.images.spec"),
    "Capabilities": ("vlbench.capability",),
    "Runtimes": ("vlbench.runtime",),
    "Results in Python": ("vlbench", "vlbench.errors"),
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages that are made, and those that the navigation does not name, under MORE."""
    from mkdocs.structure.files import File

    for name, text in generated().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    nav: Any = config.nav
    named = {page for section in nav for pages in section.values() for page in pages}
    rest = sorted(f.src_uri for f in files.documentation_pages() if f.src_uri not in named)
    if rest and not any(MORE in section for section in nav):
        nav.append({MORE: rest})
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """`<!-- file: PATH -->` becomes the file as it is now."""
    return SHOWN_FILE.sub(lambda match: f"```python\n{(ROOT / match[1]).read_text(encoding='utf-8')}```", markdown)


def generated() -> dict[str, str]:
    """Name of a page of the reference -> its text."""
    return {
        "methods": "\n".join(_methods()),
        "tasks": "\n".join(_tasks()),
        "models": "\n".join(_models()),
        "commands": "\n".join(_commands()),
        "contracts": "\n".join(_contracts()),
    }


def _methods() -> Iterator[str]:
    """Every method as `vlbench help` has it, its formula and the tests that hold its oracle."""
    from vlbench.plugins.table import table

    entries = [entry for entry in table("methods").entries.values() if entry.built_in]
    yield "# Methods\n"
    yield "Made from the code: what `vlbench help method=NAME` prints, the formula, and where the oracle is.\n"
    yield "| method | title | role | patterns |\n|---|---|---|---|"
    for entry in entries:
        role = " -> ".join(entry.facts["links"]) if "links" in entry.facts else entry.facts["role"]
        patterns = ", ".join(entry.facts.get("patterns", ()))
        yield f"| [`{entry.name}`](#{entry.name}) | {entry.facts['title']} | {role} | {patterns} |"
    for entry in entries:
        yield f"\n## {entry.name}\n"
        if formula := _formula(entry.file):
            yield f"The formula, in `{entry.file.relative_to(ROOT)}`:\n```python\n{formula}\n```"
        yield _help(f"method={entry.name}")
        if oracles := _oracles(entry.name, entry.file.stem):
            yield "Oracles:\n"
            yield from (f"* `{file}`: {line}" for file, line in oracles)


def _formula(file: Path) -> str:
    """The function `score` of a method's file, whole."""
    source = file.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name == "score":
            lines = source.splitlines()[node.lineno - 1 : node.end_lineno]
            return "\n".join(line.removeprefix("    ") for line in lines)
    return ""


def _oracles(name: str, stem: str) -> list[tuple[str, str]]:
    """Tests of methods that name this one, with the first line of each, which states its oracle."""
    word = re.compile(rf"methods\.{stem}\b|[\"'=+]{re.escape(name)}[\"'+ @,\]]")
    rows = []
    for file in sorted((ROOT / "tests" / "methods").glob("test_*.py")):
        text = file.read_text(encoding="utf-8")
        if word.search(text) and (doc := ast.get_docstring(ast.parse(text))):
            rows.append((str(file.relative_to(ROOT)), " ".join(doc.split("\n\n")[0].split())))
    return rows


def _tasks() -> Iterator[str]:
    """Every task as `vlbench help` has it, and what it asks for of an empty folder."""
    from vlbench.plugins.table import table

    yield "# Tasks\n\nMade from the code: what `vlbench help task=NAME` prints, and which files it asks for.\n"
    yield "| task | title | capability | metric |\n|---|---|---|---|"
    entries = [entry for entry in table("tasks").entries.values() if entry.built_in]
    for entry in entries:
        facts = entry.facts
        yield f"| [`{entry.name}`](#{entry.name}) | {facts['title']} | {facts['capability']} | {facts['metric']} |"
    for entry in entries:
        yield f"\n## {entry.name}\n\n{_help(f'task={entry.name}')}"
        cls: Any = entry.load()
        asked = cls(Path(f"/data/{cls.data}"), cls.Options()).missing(cls.roles()["report"])
        yield f"Of an empty `/data/{cls.data}` it says:\n"
        yield from (f"* {sentence}" for sentence in asked)


def _models() -> Iterator[str]:
    """Every card."""
    from vlbench.plugins.table import table

    yield "# Models\n\nMade from the cards. `vlbench help model=NAME` prints all of one.\n"
    yield "| model | title | can | suite | checkpoint |\n|---|---|---|---|---|"
    for entry in table("models").entries.values():
        facts = entry.facts
        can = ", ".join(facts["capabilities"])
        yield f"| `{entry.name}` | {facts['title']} | {can} | {facts.get('suite', 'full')} | `{facts['checkpoint']}` |"


def _commands() -> Iterator[str]:
    """Every verb as `--help` has it."""
    import click
    import typer

    from vlbench.cli import app

    yield "# Commands\n\nMade from the program: what `vlbench VERB --help` prints.\n"
    group: Any = typer.main.get_command(app)
    for name, verb in group.commands.items():
        for path, command in _leaves(name, verb):
            context = click.Context(command, info_name=f"vlbench {path}", terminal_width=100, max_content_width=100)
            yield f"\n## {path}\n\n```text\n{command.get_help(context)}\n```"


def _leaves(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from _leaves(f"{path} {name}", inner)
    else:
        yield path, command


def _contracts() -> Iterator[str]:
    yield "# Contracts\n\nMade from docstrings: what a plug-in implements, and what it is given.\n"
    for title, modules in CONTRACTS.items():
        yield f"\n## {title}\n"
        yield from (f"::: {module}\n" for module in modules)


def _help(word: str) -> str:
    """What `vlbench help WORD` prints."""
    import contextlib
    import io

    from vlbench.cli.catalogue import print_help

    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        print_help([word])
    return f"```text\n{stream.getvalue()}```\n"
