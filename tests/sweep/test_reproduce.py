"""A paper's table from an empty folder: its cells' words against the published numbers, and a tiny one that runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.lab import Lab
from vlbench.cell.resolve import resolve
from vlbench.leaderboard.published import load_published
from vlbench.sweep import reproduce

TABLES = ("upop", "sparselora")


@pytest.mark.parametrize("name", TABLES)
def test_every_line_means_a_cell(name: str) -> None:
    """Words, options and recipes, without data or weights."""
    assert name in reproduce.names()
    for one in reproduce.read_table(reproduce.table_file(name), {}):
        for words in one.line.cells():
            resolve(words)


@pytest.mark.parametrize("name", TABLES)
def test_every_number_is_a_published_one_of_its_task(name: str) -> None:
    """Against leaderboards/published: by task (where the source names one), split, metric, method and value."""
    numbers = load_published()
    for one in reproduce.read_table(reproduce.table_file(name), {}):
        task = one.line.words["task"]
        for metric, value in one.numbers.items():
            alike = [n for n in numbers if n.metric == metric and n.value == value and one.row.startswith(n.model)]
            if name == "upop":
                alike = [n for n in alike if (n.task, n.split) == (task, one.split) and n.method in one.row]
            assert alike, (one.row, metric, value)


def test_upop_has_every_row_of_the_paper_that_has_a_family_and_a_method_here() -> None:
    lines = reproduce.read_table(reproduce.table_file("upop"), {})
    rows = {(one.line.words["task"], one.row, one.split, metric) for one in lines for metric in one.numbers}
    for n in load_published():
        # The README and the overview repeat some, with other roundings.
        papers = n.source.startswith("table of arXiv 2301.13741") and not n.source.endswith("exp_overview.png")
        if papers and n.method == "UPop" and n.restoration == "finetuning":
            assert (n.task, f"{n.model} UPop {n.target}", n.split, n.metric) in rows, n


def tiny(lab: Lab, *printed: str) -> str:
    """A table of the lab's cells."""
    words = " ".join(lab.words)
    methods = ("method=dense", "method=magnitude sparsity=0.5", "method=dense limit=3")
    lines = [f"{words} {method} #= {told}" for method, told in zip(methods, printed, strict=False)]
    (lab.folder / "tiny.sweep").write_text("# a table\n" + "\n".join(lines) + "\n")
    return "tiny.sweep"


def test_from_an_empty_folder_to_the_table_and_nothing_is_done_twice(lab: Lab) -> None:
    file = tiny(
        lab, 'row="a" top1=33.3 top9=1', 'row="b" split="val" top1=x', 'row="c" top1=900 differs="fewer samples"'
    )
    before = json.loads(lab("reproduce", file, "--plan", "--json").out)
    assert {row["verdict"] for row in before["rows"]} == {"not run"}
    assert not Path("runs").exists()
    told = lab("reproduce", file, "--json")
    assert told.code == 0, told.err
    rows = {(row["row"], row["metric"]): row for row in json.loads(told.out)["rows"]}
    first = rows["a", "top1"]
    assert first["verdict"] == ("agrees" if first["low"] - 0.15 <= 33.3 <= first["high"] + 0.15 else "differs")
    assert rows["a", "top9"]["verdict"] == "not measured"
    assert rows["b", "top1"]["verdict"] == "did not converge there"
    assert (rows["c", "top1"]["verdict"], rows["c", "top1"]["why"]) == ("protocol differs", "fewer samples")
    made = {p: p.stat().st_mtime_ns for p in Path("runs").glob("*/result.json")}
    again = lab("reproduce", file)
    assert {p: p.stat().st_mtime_ns for p in Path("runs").glob("*/result.json")} == made
    assert "1 not measured" in again.out
    assert "note: fewer samples" in again.out


def test_what_lacks_is_told_once_and_the_rest_runs(lab: Lab) -> None:
    file = tiny(lab, 'row="a" top1=33.3')
    with (lab.folder / file).open("a") as more:
        lacking = " ".join(lab.words).replace(str(lab.weights), "output/theirs.pth")
        more.write(f'{lacking} method=dense #= row="theirs" top1=80\n{lacking} method=dense #= row="again" top1=81\n')
    told = json.loads(lab("reproduce", file, "--plan", "--json").out)
    assert len(told["missing"]) == 1
    assert "output/theirs.pth" in told["missing"][0]
    lab("reproduce", file)
    verdicts = [row["verdict"] for row in json.loads(lab("reproduce", file, "--plan", "--json").out)["rows"]]
    assert verdicts[0] in ("agrees", "differs")
    assert verdicts[1:] == ["not run", "not run"]


def test_where_data_go_is_told_word_for_word(lab: Lab) -> None:
    """A heading of vlbench.toml is no markup of a terminal's."""
    (lab.folder / "t.sweep").write_text('suite=full task=nlvr2 method=dense #= row="a" accuracy=80\n')
    assert "\nmissing: [roots]\n" in lab("reproduce", "t.sweep", "--plan").out


def test_what_is_refused(lab: Lab) -> None:
    assert "there is no table 'upob'" in lab.refused("reproduce", "upob")
    assert "has no line with task=imagenet" in lab.refused("reproduce", "sparselora", "task=imagenet")
    assert "tusk= is in no line" in lab.refused("reproduce", "upop", "tusk=nlvr2")
    (lab.folder / "bad.sweep").write_text("task=imagenet method=dense\n")
    assert "what was printed should stand behind #=" in lab.refused("reproduce", "bad.sweep")
    assert "cannot be read" in lab.refused("reproduce", "none.sweep")
