"""The index of resolved words: what `resolve` gives, without it, and nothing where anything changed."""

from __future__ import annotations

import os
import pickle
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.lab import method_file
from vlbench.cell import index as module
from vlbench.cell.cell import open_cell
from vlbench.cell.index import Index
from vlbench.cell.resolve import resolve
from vlbench.cell.spec import Spec
from vlbench.cell.words import parse
from vlbench.errors import UserError
from vlbench.plugins.table import forget
from vlbench.sweep.sweepfile import lines_of

WORDS = "suite=full task=imagenet model=deit-mini checkpoint=weights method=mine sparsity=0.25"


class Resolving:
    """`resolve`, which counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, given: Mapping[str, str]) -> Spec:
        self.calls += 1
        return resolve(given)


@pytest.fixture
def resolving(monkeypatch: pytest.MonkeyPatch) -> Resolving:
    counted = Resolving()
    monkeypatch.setattr(module, "resolve", counted)
    return counted


def ask(file: Path, words: str = WORDS) -> Spec:
    """As a new command does."""
    forget()
    with Index(file) as index:
        return index.resolve(parse(words.split()))


def test_every_cell_of_the_committed_sweeps_is_resolved_as_without_it(tmp_path: Path, resolving: Resolving) -> None:
    names = ("mini", "restoration", "distillation", "neighbours", "robustness")
    lines = [line for name in names for line in lines_of([], Path(name))]
    cells = list({frozenset(words.items()): words for line in lines for words in line.cells()[:3]}.values())
    expected = [resolve(words) for words in cells]
    for count in (len(cells), 0):  # the first time they are kept
        resolving.calls = 0
        with Index(tmp_path / "index") as index:
            specs = [index.resolve(words) for words in cells]
        assert resolving.calls == count
        assert specs == expected
    for spec, wanted in zip(specs, expected, strict=True):
        options = [link.options.model_dump(mode="json") for link in wanted.links]
        assert [link.facts.printed for link in spec.links] == options
        assert (dict(spec.of_data), dict(spec.given)) == (dict(wanted.of_data), dict(wanted.given))
        assert (spec.method, spec.target, spec.learns) == (wanted.method, wanted.target, wanted.learns)
    assert [link.options for link in specs[-1].links] == [link.options for link in expected[-1].links]
    assert resolving.calls == 1  # where the options themselves are asked for


@pytest.mark.parametrize("more", ["", "seed=3 precision=bf16", "method=magnitude+finetune steps=3", "limit=1"])
def test_its_identity_is_the_same(box: Path, resolving: Resolving, more: str) -> None:
    words = {**parse(WORDS.split()), **parse(more.split())}
    if more.startswith("method"):
        words.pop("sparsity")
    text = " ".join(f"{key}={value}" for key, value in words.items())
    ask(box / "index", text)
    cell, wanted = open_cell(ask(box / "index", text)), open_cell(resolve(words))
    assert resolving.calls == 1
    assert (cell.id, cell.identity) == (wanted.id, wanted.identity)
    assert cell.dense().id == wanted.dense().id


def test_weights_that_change_are_seen(box: Path, resolving: Resolving) -> None:
    before = [open_cell(ask(box / "index")).id for _ in range(2)]
    (box / "weights" / "config.json").write_text((box / "weights" / "config.json").read_text() + " ")
    assert open_cell(ask(box / "index")).id not in before
    assert (resolving.calls, len(set(before))) == (1, 1)


def edit_the_method(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (box / "methods" / "mine.py").write_text(method_file("mine") + "\n# another source\n")


def add_a_plug_in(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (box / "methods" / "other.py").write_text(method_file("other"))


def change_the_package(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the package that changed, its version's among them: what tells them is the state of the code."""
    (box / "package").mkdir()
    (box / "package" / "options.py").write_text("DEFAULT = 1\n")
    folders = module.code_state.__globals__["package_folders"]
    monkeypatch.setitem(module.code_state.__globals__, "package_folders", lambda: [*folders(), box / "package"])


def change_the_layout(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LAYOUT", module.LAYOUT + 1)


def use_another_pydantic(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.pydantic, "VERSION", "0")


def overwrite(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (box / "index").write_bytes(b"not a database, but as long as one" * 100)


def pickle_an_answer(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _set(box, "answer", pickle.dumps({"links": []}))


def change_an_answer(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _set(box, "answer", _get(box).replace('"0.25"', '"0.5"'))


def sign_another_answer(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its sum, of a layout that is not ours."""
    with sqlite3.connect(box / "index") as connection:
        key = connection.execute("SELECT key FROM cells").fetchone()[0]
    _set(box, "answer", '{"links": "none"}')
    _set(box, "sum", module._sum(key + '{"links": "none"}'))


def belong_to_somebody_else(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(box / "index", 12345, -1)


def _get(box: Path) -> str:
    with sqlite3.connect(box / "index") as connection:
        return str(connection.execute("SELECT answer FROM cells").fetchone()[0])


def _set(box: Path, column: str, value: Any) -> None:
    with sqlite3.connect(box / "index") as connection:
        connection.execute(f"UPDATE cells SET {column} = ?", (value,))


@pytest.mark.parametrize(
    "change",
    [edit_the_method, add_a_plug_in, change_the_package, change_the_layout, use_another_pydantic, overwrite,
     pickle_an_answer, change_an_answer, sign_another_answer, belong_to_somebody_else],
)  # fmt: skip
def test_after_a_change_the_words_are_resolved(
    box: Path, monkeypatch: pytest.MonkeyPatch, resolving: Resolving, change: Any
) -> None:
    ask(box / "index")
    assert resolving.calls == 1
    change(box, monkeypatch)
    spec = ask(box / "index")
    assert resolving.calls == 2
    assert spec == resolve(parse(WORDS.split()))


def test_a_damaged_index_is_begun_anew(box: Path, resolving: Resolving) -> None:
    (box / "index").write_bytes(b"not a database, but as long as one" * 100)
    for _ in range(3):
        ask(box / "index")
    assert resolving.calls == 2


def test_mistakes_are_told_every_time(box: Path) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match="sparsityy= is not known here"):
            ask(box / "index", WORDS + " sparsityy=1")


def test_options_that_the_recipe_gives_otherwise_are_an_error(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its identity was that of other options."""
    ask(box / "index")
    spec = ask(box / "index")
    monkeypatch.setattr(module, "resolve", lambda given: resolve({**given, "sparsity": "0.75"}))
    with pytest.raises(UserError, match="same words"):
        _ = ask(box / "index").links[0].options
    assert spec.links[0].facts.target == "0.25"
