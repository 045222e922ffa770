"""Oracles: the numbers that went in (the CSV beside a picture), and the same bytes twice."""

from __future__ import annotations

import builtins
import csv
import sys
from pathlib import Path

import pytest

from tests.leaderboard.factory import board, record
from tests.plots.finished import finished
from vlbench.errors import UserError
from vlbench.leaderboard.points import measured
from vlbench.leaderboard.rows import rows
from vlbench.plots import components, tradeoff
from vlbench.plots.canvas import drawing
from vlbench.plots.command import plot
from vlbench.plots.kept import Kept, Panel
from vlbench.plots.tradeoff import draw_tradeoff
from vlbench.records.record import write_record

pytest.importorskip("matplotlib", reason="needs the extra 'plots' (matplotlib)")

LOG = {
    "finetune": {"loss": [0.5, 0.4, 0.3]},  # a manifest has its keys sorted: the chain says what came first
    "upop_search": {"loss": [0.9, 0.8, 0.7, 0.6], "updates": [[1, 0.2], [3, 0.5]]},
}


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    finished(folder / "half", keep=lambda site: site.units // 2, log=LOG)
    finished(folder / "quarter", sparsity=0.75, keep=lambda site: site.units // 4, log=LOG)
    write_record(folder / "dense" / "result.json", record(task="nlvr2", model="blip-nlvr-mini", cell="dense"))
    return folder


@pytest.fixture(scope="module")
def drawn(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("plots")
    return out, plot(["half", "quarter", "dense"], lambda name: runs / name, runs, out)


def test_every_picture_comes_in_three_kinds(drawn):
    out, (files, left) = drawn
    stem = "mini-nlvr2-blip-nlvr-mini"
    names = [f"{stem}-upop-components", f"{stem}-upop-layers", f"{stem}-search", f"{stem}-tradeoff"]
    assert [file.name for file in files] == [f"{name}.{kind}" for name in names for kind in ("png", "svg", "csv")]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in out.glob("*.png"))
    assert all(b"<svg" in file.read_bytes() for file in out.glob("*.svg"))
    assert left == [
        "mini / nlvr2 / blip-nlvr-mini / dense: no picture of what is kept, since none of its runs made a "
        "compressed model."
    ]


def test_pictures_have_the_same_bytes_on_any_day(drawn, runs, tmp_path, monkeypatch):
    out, (files, _) = drawn
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    (again, _) = plot(["quarter", "dense", "half"][::-1], lambda name: runs / name, runs, tmp_path)
    for file, other in zip(files, again, strict=True):
        assert file.name == other.name
        assert file.read_bytes() == other.read_bytes(), file.name
    assert not any(b"<dc:date>" in file.read_bytes() for file in out.glob("*.svg"))


def test_components_stand_beside_the_published_ones(drawn):
    table = read(drawn[0] / "mini-nlvr2-blip-nlvr-mini-upop-components.csv")
    mine = [row for row in table if row["origin"] == "measured"]
    assert {(row["target"], row["kept"]) for row in mine} == {("0.5", "0.500000"), ("0.75", "0.250000")}
    assert {row["target"] for row in table if row["origin"] == "published"} == {"2x", "3x", "4x", "5x", "10x"}


def test_the_links_of_a_search_follow_each_other_in_the_order_of_the_chain(drawn):
    table = read(drawn[0] / "mini-nlvr2-blip-nlvr-mini-search.csv")
    mine = [row for row in table if row["cell"] == "half" and row["quantity"] == "loss"]
    assert [float(row["value"]) for row in mine] == [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
    assert [int(row["step"]) for row in mine] == list(range(7))
    ratios = [row for row in table if row["cell"] == "quarter" and row["quantity"] == "ratio"]
    assert [(row["step"], float(row["value"])) for row in ratios] == [("1", 0.2), ("3", 0.5)]


def test_the_number_of_gates_is_drawn_where_the_search_noted_it(tmp_path):
    log = {"upop_search": {"loss": [0.9, 0.8], "updates": [[0, 0.1], [1, 0.5]], "selected": [12, 40]}}
    finished(tmp_path / "one", keep=lambda site: site.units // 2, log=log)
    plot(["one"], lambda name: tmp_path / name, tmp_path, tmp_path / "out")
    table = read(tmp_path / "out" / "mini-nlvr2-blip-nlvr-mini-search.csv")
    assert [(row["step"], row["value"]) for row in table if row["quantity"] == "gates"] == [("0", "12"), ("1", "40")]


def test_mini_rows_and_published_ones_meet_as_fractions_of_their_own_dense_models(tmp_path):
    made = rows(board())
    with drawing():
        draw_tradeoff(made, tmp_path, "x")
    table = read(tmp_path / "x-tradeoff.csv")
    mine = [row for row in table if row["origin"] == "measured"]
    dense = next(row for row in made if row.dense)
    for line, row in zip(mine, made, strict=True):
        assert float(line["value_fraction"]) == pytest.approx(row.value / dense.value, abs=1e-6)
        assert float(line["params_fraction"]) == pytest.approx(row.nonzero / dense.nonzero, abs=1e-6)
        assert float(line["macs_fraction"]) == pytest.approx(row.macs / dense.macs, abs=1e-6)
    theirs = [row for row in table if row["origin"] == "published"]
    assert theirs
    assert all(row["value_fraction"] and row["protocol"] for row in theirs)
    half = next(row for row in theirs if row["name"] == "UPop 2x")
    assert float(half["value_fraction"]) == pytest.approx(76.3 / 77.4, abs=1e-6)
    assert float(half["params_fraction"]) == pytest.approx(211.3 / 361.6, abs=1e-6)


def test_two_ways_of_a_method_share_no_line_and_one_way_has_one():
    """UPop at two targets is a line; the same with an ablation at these targets is another."""
    told = {"pattern": "structured", "trained": True, "seed": 0}
    plain = [record("upop", sparsity=s, accuracy=0.7, **told) for s in (0.5, 0.75)]
    once = [record("upop", sparsity=s, accuracy=0.6, options={"pruning": "once"}, **told) for s in (0.5, 0.75)]
    longer = record("upop", sparsity=0.75, accuracy=0.6, options={"steps": 9}, **told)
    assert [spot.family for spot in measured(rows([record(), *plain]))] == ["dense", "upop", "upop"]
    assert {spot.family for spot in measured(rows([plain[0], longer]))} == {"upop"}  # a recipe's lengths grow so
    families = [spot.family for spot in measured(rows([*plain, *once]))]
    assert sorted(families) == ["upop", "upop", "upop pruning=once", "upop pruning=once"]


def test_more_configurations_than_colours_are_told_apart(tmp_path, monkeypatch):
    """Colour, marker and line style of every legend entry together."""
    told = {"pattern": "structured", "trained": True, "seed": 0, "sparsity": 0.5}
    made = rows([record(), *(record("upop", options={"n": n}, **told) for n in range(11))])
    seen = []
    monkeypatch.setattr(
        "vlbench.plots.tradeoff.save",
        lambda drawn, *rest: seen.extend(
            (line.get_color(), line.get_marker(), line.get_linestyle(), line.get_markerfacecolor())
            for line in (h.lines[0] for h in drawn.axes[0].get_legend_handles_labels()[0] if hasattr(h, "lines"))
        ),
    )
    with drawing():
        draw_tradeoff(made, tmp_path, "x")
    assert len(seen) == len(set(seen)) == 12


def test_components_stand_in_one_order_in_every_picture(drawn, tmp_path):
    """That of COMPONENTS, so that a component has one colour in the pictures of all tasks; others follow by name."""
    entries = []
    kept = [Kept("0.5", 0.5, dict.fromkeys(("fusion FFN", "cross-attention", "text FFN", "vision FFN"), 0.5), {})]
    with drawing(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(components, "save", lambda drawn, *rest: entries.extend(drawn.legends[0].get_texts()))
        components.draw_components([Panel("x", False, tuple(kept))], tmp_path, "x")
    assert [entry.get_text() for entry in entries] == ["vision FFN", "text FFN", "cross-attention", "fusion FFN"]


def test_full_size_rows_keep_their_units(tmp_path):
    with drawing():
        draw_tradeoff(rows([r.model_copy(update={"suite": "full"}) for r in board()]), tmp_path, "x")
    table = read(tmp_path / "x-tradeoff.csv")
    assert any(row["origin"] == "published" and float(row["params"] or 0) > 1e8 for row in table)


def test_runs_without_a_search_or_a_whole_evaluation_are_told(tmp_path):
    write_record(tmp_path / "a" / "result.json", record(cell="a"))
    write_record(tmp_path / "b" / "result.json", record(cell="b", flags=["limit"], seed=4))
    _, left = plot(["a", "b"], lambda name: tmp_path / name, tmp_path, tmp_path / "out")
    assert "no picture of a search: none of these runs searched with gates." in left
    assert f"{tmp_path / 'b'}: not in the picture of costs, since it was not evaluated whole." in left


def test_bad_words_are_refused_before_anything_is_written(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"nothing is no finished run \(`vlbench list runs`"):
        plot(["nothing"], Path, tmp_path, out)
    with pytest.raises(UserError, match="not colour="):
        plot(["colour=red"], Path, tmp_path, out)
    with pytest.raises(UserError, match="there are no results of task=nlvr"):
        plot(["task=nlvr"], Path, tmp_path, out)
    assert not out.exists()


def test_without_matplotlib_one_sentence_says_how_to_install_it(monkeypatch, tmp_path):
    real = builtins.__import__

    def absent(name, *rest, **more):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest, **more)

    for name in [n for n in sys.modules if n.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match=r"pip install 'vlbench\[plots\]'"):
        plot(["task=nlvr2"], Path, tmp_path, tmp_path / "out")


def test_the_committed_board_can_be_drawn(tmp_path):
    files, left = plot(["task=nlvr2"], Path, tmp_path / "runs", tmp_path / "out")
    assert files[0].name == "mini-nlvr2-blip-nlvr-mini-tradeoff.png"
    assert left == []


def test_a_long_legend_takes_no_room_from_the_panels(tmp_path):
    """Of 40 kinds of rows the panels are as high as of two."""
    heights = []
    for count in (2, 40):
        many = [record(f"method{i}", sparsity=0.5, accuracy=0.5 + i / 100) for i in range(count)]
        with drawing(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(tradeoff, "save", lambda drawn, *rest: heights.append(panel_height(drawn)))
            draw_tradeoff(rows([record(), *many]), tmp_path, "x")
    few, long = heights
    assert long == pytest.approx(few, rel=0.15)


def panel_height(drawn):
    """Inches of the first panel, once everything has found its place."""
    drawn.draw_without_rendering()
    return drawn.axes[0].get_window_extent().height / drawn.dpi
