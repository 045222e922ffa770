"""Oracle: ../shared/published where it is there, and the papers' own figures quoted in research."""

from __future__ import annotations

import csv
import re
from dataclasses import replace

import pytest

from vlbench.errors import UserError
from vlbench.leaderboard.published import HEAT_MAP, load_heat_map, load_published, points
from vlbench.plugins.workspace import boards_folder

NUMBERS = load_published()


def test_every_number_has_a_source_a_table_and_a_protocol():
    assert len(NUMBERS) > 800
    for number in NUMBERS:
        assert number.source
        assert number.table
        assert number.protocol
        assert number.metric


def test_no_suspect_number_is_published(shared):
    suspects, kept = set(), set()
    for name in ("upop.csv", "peers.csv", "sparselora.csv"):
        with (shared / "published" / name).open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                if "SUSPECT" in "".join(row.values()):
                    suspects.add((row["source"], row["value"]))
    assert len(suspects) > 20
    kept = {(n.source, str(n.value)) for n in NUMBERS}
    assert not {source for source, _ in suspects} & {source for source, _ in kept}
    text = "".join(path.read_text(encoding="utf-8") for path in (boards_folder() / "published").glob("*"))
    assert not re.search("SUSPECT|UNVERIFIED|from memory, not", text)


def test_values_are_those_of_the_research(shared):
    """Every value of upop.csv that we show stands in the shared file, with the parameters and MACs of its line."""
    with (shared / "published" / "upop.csv").open(newline="", encoding="utf-8") as stream:
        told = {
            (row["table"], float(row["value"]), float(row["params_m"] or 0), float(row["flops_g"] or 0))
            for row in csv.DictReader(stream) if row["value"]
        }  # fmt: skip
    mine = [n for n in NUMBERS if n.source.startswith("table of arXiv 2301.13741") and n.metric != "r_mean"]
    assert len(mine) > 200
    for n in mine:
        if n.value is not None:
            assert (n.table, n.value, (n.params or 0) / 1e6, (n.macs or 0) / 1e9) in told


def test_points_of_a_task_are_its_reported_split_once_each():
    found = {(p.row.method, p.row.target): p for p in points(NUMBERS, "nlvr2", "accuracy")}
    half = found["UPop", "2x"].row
    assert (half.split, half.value, half.params, half.macs) == ("test-P", 81.13, 150_150_000, 89_360_000_000)
    assert found["UPop", "2x"].dense == found["dense", ""].row
    assert found["dense", ""].row.value == 83.08
    assert ("Mask-based Pruning", "3x") not in found  # it did not converge


def test_the_mean_of_recalls_is_that_of_the_line():
    rows = [p.row for p in points(NUMBERS, "coco_retrieval", "r_mean")]
    (upop,) = (r for r in rows if (r.model, r.method, r.target) == ("BLIP-base", "UPop", "2x"))
    assert upop.value == pytest.approx((77.4 + 93.4 + 97.0 + 59.8 + 83.1 + 89.8) / 6, abs=0.01)
    assert "momentum encoder" in upop.protocol


def test_a_table_without_its_dense_model_has_no_reference():
    alone = [p for p in points(NUMBERS, "imagenet", "top1") if p.row.method.startswith("Isomorphic")]
    assert alone
    assert all(p.dense is None for p in alone)


def test_the_reference_is_the_dense_model_of_the_same_table():
    first = next(n for n in NUMBERS if n.task == "nlvr2" and n.method == "dense")
    other = replace(first, table="another", value=70.0)
    pruned = replace(other, method="mine", value=63.0)
    (point,) = (p for p in points([first, other, pruned], "nlvr2", "accuracy") if p.row.method == "mine")
    assert point.dense == other
    elsewhere = replace(pruned, split="another", method="yours")
    (point,) = (p for p in points([first, other, elsewhere], "nlvr2", "accuracy") if p.row.method == "yours")
    assert point.dense is None, "of another split"


def test_damaged_files_are_named(tmp_path):
    good = (boards_folder() / "published" / "upop.csv").read_text(encoding="utf-8")
    (tmp_path / "upop.csv").write_text(good.replace("83.08", "eighty", 1), encoding="utf-8")
    with pytest.raises(UserError, match=r"upop\.csv, line 2, is no published number"):
        load_published(tmp_path)
    (tmp_path / "upop.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="its columns are source, table, task"):
        load_published(tmp_path)
    (tmp_path / HEAT_MAP).write_text("source,layer\nx,one\n")
    with pytest.raises(UserError, match="is no line of a heat map"):
        load_heat_map(tmp_path)
    assert load_published(tmp_path / "empty") == ()
