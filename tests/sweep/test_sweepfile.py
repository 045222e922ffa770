"""Words of a sweep: products, files, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlbench.errors import UserError
from vlbench.plugins.workspace import boards_folder
from vlbench.sweep.sweepfile import Line, lines_of, shipped


def test_a_line_is_the_product_of_its_lists() -> None:
    """Written out by hand; a chain is one value, and a value that is given twice counts once."""
    cells = Line({"method": "a+b,c", "task": "t", "seed": "0,1,0"}).cells()
    assert cells == [{"method": m, "task": "t", "seed": s} for m in ("a+b", "c") for s in ("0", "1")]


def test_a_single_empty_value_is_a_value() -> None:
    assert Line({"label": ""}).cells() == [{"label": ""}]


def test_an_empty_value_among_others_is_refused() -> None:
    with pytest.raises(UserError, match="seed=0,,1 has an empty value"):
        Line({"seed": "0,,1"}).cells()


def test_a_file_is_a_line_a_sweep_and_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "a.sweep"
    file.write_text("# all\n\ntask=x,y method=dense  # the baseline\ntask=x checkpoint='/a b/c'\n")
    lines = lines_of(["task=y", "seed=1"], file)
    assert [dict(line.words) for line in lines] == [
        {"task": "y", "method": "dense", "seed": "1"},
        {"task": "y", "checkpoint": "/a b/c", "seed": "1"},
    ]
    assert [line.place for line in lines] == [f"{file}, line 3", f"{file}, line 4"]


def test_every_mistake_of_a_file_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "a.sweep"
    file.write_text("task\ntask=x task=y\n'\n")
    with pytest.raises(UserError) as told:
        lines_of([], file)
    assert [line.split(": ")[0] for line in str(told.value).splitlines()] == [f"{file}, line {n}" for n in (1, 2, 3)]


def test_a_file_without_words_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.sweep"
    with pytest.raises(UserError, match=r"a\.sweep cannot be read \(No such file or directory\)"):
        lines_of([], file)
    file.write_text("# nothing\n")
    with pytest.raises(UserError, match="holds no sweep"):
        lines_of([], file)


def test_what_ships_is_known_by_its_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file itself, unless one of that name is here."""
    monkeypatch.chdir(tmp_path)
    assert shipped(Path("mini")) == shipped(Path("mini.sweep")) == boards_folder() / "mini.sweep"
    assert shipped(Path("upop")) == boards_folder() / "paper" / "upop.sweep"
    with pytest.raises(UserError, match=r"minni is no file here, and no sweep that ships\. Did you mean 'mini'"):
        lines_of([], Path("minni"))
    Path("mini").write_text("task=x")
    assert [dict(line.words) for line in lines_of([], Path("mini"))] == [{"task": "x"}]
