"""Oracle: the program itself. Every command that the README and the pages of docs/ show ends with exit code 0. Cells
are resolved and sweeps planned, since some take hours; everything else runs. What cannot is marked, with a reason."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, Block, blocks
from tests.lab import Lab
from vlbench.cell.resolve import resolve
from vlbench.cell.words import parse

PLANNED = ("run", "sweep", "reproduce")
COMMANDS = [
    (block, line) for page in PAGES for block in blocks(page) if block.language == "bash" for line in block.lines
]
RUN = {line: block for block, line in COMMANDS if not block.reason}  # one that stands on two pages runs once


def test_the_readme_is_short_and_the_pages_have_commands() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 12_000
    assert len(RUN) > 40
    assert all(block.language for page in PAGES for block in blocks(page) if "vlbench " in block.text[:8])


def test_every_inline_command_names_a_verb_that_there_is() -> None:
    from vlbench.cli import DATA_VERBS, VERBS

    verbs = {verb.__name__.rstrip("_") for verb in VERBS} | {"data"}
    nested = {verb.__name__.rstrip("_") for verb in DATA_VERBS}
    for page in PAGES:
        for words in re.findall(r"`vlbench ([a-z]+)(?: ([a-z]+))?", page.read_text(encoding="utf-8")):
            assert words[0] in verbs, (page.name, words)
            assert words[0] != "data" or words[1] in nested, (page.name, words)


@pytest.fixture
def place(lab: Lab) -> Lab:
    """A workspace in which a run is finished."""
    assert lab.run("method=uniform", "sparsity=0.5").code == 0
    return lab


def test_every_command_works(place: Lab) -> None:
    """In one workspace, so that its run is made once."""
    dense, run = sorted(path.parent.name for path in place.folder.glob("runs/*/result.json"))
    failures = []
    for number, (line, block) in enumerate(RUN.items()):
        words = shlex.split(line, comments=True)
        assert words[0] == "vlbench", f"{block.page.name}: mark this block as not run, with a reason: {line}"
        try:
            problem = _problem(place, words[1:], {"RUN": [run, dense], "DIR": [f"out-{number}"]})
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            failures.append(f"{block.page.name}: {line}\n    {problem}")
    assert failures == []


def _problem(place: Lab, words: list[str], names: dict[str, list[str]]) -> str:
    """What is wrong with a command; empty where nothing is."""
    names = {key: list(values) for key, values in names.items()}
    words = [names[word].pop(0) if names.get(word) else word for word in words]
    if words[0] == "run" and "--plan" not in words:  # every word is read; data and weights of suite=full are not here
        resolve(parse(word for word in words[1:] if not word.startswith("--")))
        return ""
    result = place(*words, *["--plan"] * (words[0] in PLANNED and "--plan" not in words))
    return "" if result.code == 0 else f"exit {result.code}: {result.err.strip()[-300:]}"


def test_a_block_that_is_not_run_says_why() -> None:
    for block, _ in COMMANDS:
        assert not block.reason or len(block.reason) > 10


def test_blocks_are_read_as_pages_show_them(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text('x\n<!-- not run here: it needs a GPU -->\n```bash\na\n\nb\n```\n```python title="f.py"\n1\n```\n')
    assert list(blocks(page)) == [
        Block(page, "bash", "", "a\n\nb\n", "it needs a GPU"),
        Block(page, "python", "f.py", "1\n", ""),
    ]
    assert next(blocks(page)).lines == ["a", "b"]
