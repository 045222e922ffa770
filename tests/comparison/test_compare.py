"""`vlbench compare`: which rows names mean, what is refused and why, and what is concluded."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.leaderboard.factory import board, record, scores
from vlbench.comparison.compare import compare, print_comparison
from vlbench.comparison.rebuilt import clusters_of
from vlbench.errors import UserError
from vlbench.leaderboard import filters as select
from vlbench.leaderboard.rows import rows
from vlbench.plugins.workspace import boards_folder
from vlbench.records.record import Budget, read_record, write_record


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A leaderboards folder of made-up results, and an empty folder of runs beside it."""
    for r in board():
        write_record(tmp_path / "boards" / "results" / "mini" / f"{r.cell}.json", r)
    monkeypatch.setattr(select, "boards_folder", lambda: tmp_path / "boards")
    (tmp_path / "runs").mkdir()
    return tmp_path


def add(place: Path, *records) -> None:
    for r in records:
        write_record(place / "boards" / "results" / r.suite / f"{r.cell}.json", r)


def told(place: Path, *names: str, **words: str):
    return compare(names, words, place / "runs")


def test_every_later_row_is_compared_with_every_earlier_one(place):
    found, pairs = told(place, "dense", "upop", "magnitude@0.5")
    assert [row.method for row, _ in found] == ["dense", "upop", "magnitude"]
    assert [(p.a.method, p.b.method) for p in pairs] == [
        ("dense", "upop"),
        ("dense", "magnitude"),
        ("upop", "magnitude"),
    ]
    assert all(p.p >= p.change.p for p in pairs)


def test_a_comparison_with_dense_is_the_boards(place):
    _, (pair,) = told(place, "dense", "uniform")
    row = next(r for r in rows(board()) if r.method == "uniform")
    assert (pair.change.delta, pair.change.low, pair.change.high, pair.change.p) == (
        row.delta,
        row.delta_low,
        row.delta_high,
        row.p,
    )
    assert (pair.verdict, pair.change.test) == ("worse", "t, clusters")


def test_rows_are_named_by_config_cell_folder_and_method(place):
    dense, local = board()[0], record("wanda", sparsity=0.25, accuracy=0.79, pattern="2:4")
    write_record(place / "runs" / local.cell / "result.json", local)
    config = next(r.config for r in rows(board()) if r.method == "uniform")
    names = (dense.cell, config, local.cell, "magnitude@0.75", str(place / "runs" / local.cell))
    found, _ = told(place, *names[:4])
    assert [row.method for row, _ in found] == ["dense", "uniform", "wanda", "magnitude"]
    with pytest.raises(UserError, match="named before: mini vqav2 blip-mini wanda"):
        told(place, *names)


@pytest.mark.parametrize(
    ("names", "words", "why"),
    [
        (("dense", "magnitude"), {}, r"magnitude names 2 rows(.|\n)*0\.75|magnitude names 2 rows"),
        (("dense", "magnitud"), {}, "Did you mean 'magnitude'"),
        (("dense",), {}, "takes two rows or more"),
        ((), {}, "takes two rows or more"),
        (("dense", "upop"), {"task": "vqa"}, "no results of task=vqa. Did you mean 'vqav2'"),
        *((("dense", "upop"), {"margin": m}, "percent points above 0") for m in ("0", "-1", "x", "nan", "inf", "100")),
    ],
)
def test_what_cannot_be_named_is_told(place, names, words, why):
    with pytest.raises(UserError, match=why):
        told(place, *names, **words)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"split_digest": "other"}, "split_digest"),
        ({"weights_digest": "other"}, "weights_digest"),
        ({"evaluation": {"precision": "bf16"}}, "evaluation"),
        ({"task_version": 2}, "task_version 1 and 2"),
        ({"model": "clip-mini"}, "model 'blip-mini' and 'clip-mini'"),
        ({"label": "mine"}, "label"),
    ],
)
def test_rows_of_other_blocks_are_refused_with_the_reason(place, change, why):
    add(place, record("taylor", sparsity=0.5, cell="other", **change))
    with pytest.raises(UserError, match=f"cannot be compared: .*{why}"):
        told(place, "dense", "taylor")


def test_a_limited_run_is_no_row(place):
    write_record(place / "runs" / "short" / "result.json", record("wanda", sparsity=0.9, flags=["limit"]))
    with pytest.raises(UserError, match="no row of a board: limit"):
        told(place, "dense", "short")


def test_nearly_equal_rows_are_not_separated_but_within_the_margin(place):
    dense = scores(0.8)
    nearly = dense.copy()
    nearly[np.flatnonzero(dense)[:3]] = 0
    add(place, record("taylor", sparsity=0.1, values=nearly))
    _, (pair,) = told(place, "dense", "taylor", margin="1.0")
    assert pair.verdict == "not separated"
    assert pair.non_inferior is True
    _, (pair,) = told(place, "dense", "magnitude@0.75", margin="1.0")
    assert (pair.verdict, pair.non_inferior) == ("worse", False)


def test_the_text_states_what_was_done(place, capsys):
    words = {"task": "vqav2", "margin": "1"}
    print_comparison(["dense", "upop", "uniform"], words, place / "runs", as_json=False)
    text = capsys.readouterr().out
    for part in (
        "mini / vqav2 / blip-mini: accuracy on the same 1,500 samples in 300 clusters",
        "3 seeds ±",
        "not separated",
        "C is worse",
        "B is not shown to be within the margin of A",
        "adjusted over the 3 pairs (Holm)",
        "margin 1 points, one-sided, claimed at 0.025 or below",
        "A row of several seeds is their mean on every sample",
        "flagged batch-size-backed-off",
        "Mini ranks do not predict full ranks.",
    ):
        assert part in text, part


def test_a_method_alone_is_its_plain_row_in_the_block_that_has_all_names(place):
    """Beside it stand a variant with an option and a dense model that sees no images: neither makes names ambiguous."""
    blind = {"evaluation": {"precision": "fp32", "blind": True}, "flags": ["without images"]}
    add(place, record("dense", cell="blind", **blind))
    add(place, *(record("upop", sparsity=0.5, cell=f"once{s}", seed=s, trained=True, options={"pruning": "once"})
                 for s in (0, 1)))  # fmt: skip
    found, _ = told(place, "dense", "upop@0.5")
    assert next((row.method, row.options, row.flags) for row, _ in found) == ("dense", "", "")
    assert found[1][0].options == ""
    with pytest.raises(UserError, match=r"dense names 2 rows(.|\n)*\(without images\)"):
        told(place, "dense")


def test_unequal_training_is_told(place, capsys):
    budgets = {"short": Budget(steps=100, samples_seen=3200), "long": Budget(steps=300, samples_seen=9600)}
    for cell, budget in budgets.items():
        options = {"n": cell}
        add(place, record("finetune", sparsity=0.5, trained=True, cell=cell, options=options, budget=budget))
    add(place, record("taylor", sparsity=0.5, cell="none"))
    for names, wanted in (
        (("short", "long"), r"These are rows of unequal training \(samples seen: \w+ 3,200, \w+ 9,600\)"),
        (("none", "long"), "These are untrained rows beside trained ones"),
        (("none", "magnitude@0.75"), None),
    ):
        print_comparison(names, {}, place / "runs", as_json=False)
        text = capsys.readouterr().out
        assert re.search(wanted, text) if wanted else "samples seen" not in text


def test_json_has_everything(place, capsys):
    print_comparison(["upop", "uniform"], {"margin": "1"}, place / "runs", as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["task"], found["metric"], found["margin"], found["clusters"]) == ("vqav2", "accuracy", 1.0, 300)
    assert [len(row["cells"]) for row in found["rows"]] == [3, 1]
    (pair,) = found["pairs"]
    assert pair["low"] < pair["delta"] < pair["high"] < 0
    assert (pair["verdict"], pair["non_inferior"], pair["test"]) == ("worse", False, "t, clusters, seeds")


def test_scores_of_other_lengths_are_refused(place):
    short = record("taylor", sparsity=0.5).scores
    odd = record("obd", sparsity=0.5, values=scores(0.7)[:1000], vs_dense=None,
                 scores=record("x", values=[1.0, 0.0]).scores)  # fmt: skip
    assert short
    add(place, odd.model_copy(update={"samples": 1500, "clusters": 300}))
    with pytest.raises(UserError, match="has 2 scores, others 1500"):
        told(place, "dense", "obd")


def test_clusters_of_a_record_of_schema_1_are_the_tasks():
    """The committed results of VQAv2 are of schema 1; their difference to the dense model is known."""
    folder = boards_folder() / "results" / "mini"
    old = read_record(next(folder.glob("mini-vqav2-blip-vqa-mini-magnitude-0.5-*.json")))
    dense = read_record(next(folder.glob("mini-vqav2-blip-vqa-mini-dense-*.json")))
    _, (pair,) = compare([dense.cell, old.cell], {}, Path("nowhere"))
    assert len(set(clusters_of(old.model_copy(update={"sample_clusters": ""})))) == old.clusters
    assert (pair.change.delta, pair.change.low, pair.change.high) == pytest.approx(
        (old.vs_dense.delta, old.vs_dense.low, old.vs_dense.high), rel=1e-9
    )
    with pytest.raises(UserError, match="other samples than those"):
        clusters_of(old.model_copy(update={"sample_clusters": "", "split_digest": "other"}))
