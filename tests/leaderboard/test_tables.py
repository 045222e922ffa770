"""What a reader sees: the CSV's formats, the page, and the terminal's table in 100 columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from tests.leaderboard.factory import board, record
from vlbench.leaderboard.rows import COLUMNS, rows
from vlbench.leaderboard.tables import count, csv_text, estimate, fixed, markdown, reduced
from vlbench.leaderboard.terminal import show
from vlbench.records.record import Budget, Record


def printed(records: Sequence[Record], local: Iterable[str] = (), **console: Any) -> str:
    stream = io.StringIO()
    show(rows(records), set(local), Console(file=stream, **console))
    return stream.getvalue()


def config_of(method: str) -> str:
    return next(row.config for row in rows(board()) if row.method == method)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *((None, ""), (0, "0"), (999, "999"), (1000, "1.00k"), (9_994, "9.99k"), (9_996, "10.0k")),
        *((999_499, "999k"), (999_999, "1.00M"), (86_400_000, "86.4M"), (17_600_000_000, "17.6G")),
        (1_234_000_000_000, "1.23T"),
    ],
)
def test_count_keeps_three_digits(number, text):
    assert count(number) == text


def test_numbers_as_text():
    assert fixed(-0.04, 1) == "0.0"
    assert fixed(81.25, 4) == "81.2500"
    assert estimate(81.24, 79.9, 82.49, 1) == "81.2 [79.9, 82.5]"
    assert estimate(0.31, -0.2, 0.8, 1, sign="+") == "+0.3 [-0.2, 0.8]"
    assert estimate(-0.01, -0.2, 0.2, 1, sign="+") == "0.0 [-0.2, 0.2]"
    assert estimate(50.0, None, None, 1) == "50.0"
    assert estimate(None, None, None, 1) == ""
    assert reduced(1_200_000, 0.375) == "1.20M -38%"
    assert reduced(1_200_000, 0.375, short=True) == "-38%"
    assert reduced(45_600_000, 0.0) == reduced(45_600_000, None) == "45.6M"


def test_csv_has_fixed_columns_and_formats():
    found = list(csv.DictReader(io.StringIO(csv_text(rows(board())))))
    assert tuple(found[0]) == COLUMNS
    dense, magnitude, upop = found[0], found[-1], next(row for row in found if row["method"] == "upop")
    assert (dense["trained"], dense["delta"], dense["p"], dense["spread"]) == ("no", "", "", "")
    assert (magnitude["sparsity"], magnitude["model_reduction"], magnitude["nonzero"]) == (
        "0.7500",
        "0.5769",
        "825000",
    )
    assert magnitude["value"] == f"{float(magnitude['value']):.4f}"
    assert (upop["seeds"], upop["trained"], upop["steps"]) == ("3", "yes", "300")
    assert {len(row["config"]) for row in found} == {12}


def test_csv_quotes_what_it_must_and_ends_lines_alike():
    row = replace(rows([record()])[0], label='a "quoted", label')
    text = csv_text([row])
    assert '"a ""quoted"", label"' in text
    assert "\r" not in text
    assert text.count("\n") == 2


def test_csv_gives_p_and_small_numbers_enough_digits():
    row = rows([record("magnitude", sparsity=0.5, accuracy=0.6)])[0]
    line = next(csv.DictReader(io.StringIO(csv_text([replace(row, p=0.000123456, delta=-0.00001)]))))
    assert (line["p"], line["delta"]) == ("0.0001235", "0.0000")


@pytest.mark.parametrize(
    ("task", "metric", "written"),
    [
        *(("imagenet", "top1", "top-1"), ("ade20k", "miou", "mIoU"), ("coco_caption", "cider", "CIDEr")),
        *(("nlvr2", "accuracy", "accuracy"), ("nowhere_installed", "top1", "top1")),
    ],
)
def test_headings_write_a_metric_as_its_task_does_and_the_csv_its_key(task, metric, written):
    found = rows([record("dense", task=task, metric=metric, metrics={metric: 73.0})])
    assert f" | {written} | vs dense | " in markdown(found)
    stream = io.StringIO()
    show(found, set(), Console(file=stream, width=100))
    assert f" {written} " in stream.getvalue()
    assert next(csv.DictReader(io.StringIO(csv_text(found))))["metric"] == metric


def test_the_page_has_sections_with_the_dense_model_on_top():
    text = markdown(rows(board()))
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == [
        "# vqav2, suite mini",
        "## blip-mini",
        "### dense",
        "### dense, trained",
        "### 2:4, untrained",
        "### structured, trained",
        "### unstructured, untrained",
    ]
    assert "mini ranks do not predict full ranks" in text
    assert "Split val (task version 1): 1,500 samples in 300 clusters." in text
    assert "| batch-size-backed-off |" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {11, 15}  # trained rows say what training took


def test_what_training_took_and_whether_it_converged_stand_beside_each_other():
    """Of two trained rows, the one that tried candidates counts them; a row at chance has no tick."""
    told = {"sparsity": 0.5, "pattern": "structured", "trained": True, "seed": 0}
    dear = record("grid", accuracy=0.7, budget=Budget(steps=450, samples_seen=57600), n_tuned=3, **told)
    lost = record("upop", accuracy=0.27, budget=Budget(steps=300, samples_seen=38400), **told)
    text = markdown(rows([record(), dear, lost]))
    cells = {line.split(" | ")[0]: line.split(" | ")[8:12] for line in text.splitlines() if line.startswith("| ")}
    assert cells["| grid"] == ["450", "57.6k", "3", "yes"]
    assert cells["| upop"] == ["300", "38.4k", "1", "no"]
    shown = printed([record(), dear, lost])
    assert [line.split()[-1] for line in shown.splitlines() if line.lstrip().startswith(("grid", "upop"))] == [
        "57.6k",
        "38.4k",
    ]
    assert "not converged: upop at 50.0%" in shown
    assert "not converged: grid" not in shown
    assert "seen" not in printed([record(), record("wanda", sparsity=0.5)])


def test_a_block_without_images_says_so_in_its_heading():
    told = markdown(rows([record(cell="a"), record(cell="b", evaluation={"precision": "fp32", "blind": True})]))
    headings = [line for line in told.splitlines() if line.startswith("## ")]
    assert headings == ["## blip-mini", "## blip-mini, without images"]


def test_rules_never_share_a_table_and_stand_in_the_heading():
    """One cell of each way to read an answer: a block each, named by it; the task's other settings are not."""
    ways = [
        {"rule": "official", "decoding": "generate"}, {"rule": "lmms", "decoding": "generate"},
        {"rule": "official", "decoding": "rank"}, {"rule": "official", "decoding": "generate", "blind": True},
    ]  # fmt: skip
    made = rows([record(cell=str(i), evaluation={"precision": "fp32", **way}) for i, way in enumerate(ways)])
    assert len({row.block for row in made}) == 4
    headings = [line for line in markdown(made).splitlines() if line.startswith("## ")]
    assert sorted(headings) == [
        "## blip-mini, decoding=rank", "## blip-mini, rule=lmms", "## blip-mini, rule=official",
        "## blip-mini, rule=official, without images",
    ]  # fmt: skip
    assert "rule=" not in csv_text(rows([record(evaluation={"precision": "fp32", "decoding": "rank"})]))


def test_a_bar_in_a_name_does_not_break_the_page():
    text = markdown([replace(row, label="a|b") for row in rows([record()])])
    assert "a\\|b" in text


@pytest.mark.parametrize("width", [100, 120])
def test_the_terminal_table_fits(width):
    text = printed(board(), {config_of("wanda")}, width=width, force_terminal=True, color_system=None)
    assert max(map(len, text.splitlines())) <= width
    for word in ("method", "sparsity", "params", "MACs", "accuracy", "vs dense", "seeds"):
        assert word in text


def test_a_narrow_terminal_loses_columns_not_the_answer():
    text = printed(board(), width=80, force_terminal=True, color_system=None)
    table = text.splitlines()[1:-7]
    assert max(map(len, table)) <= 80
    assert "accuracy" in text
    assert "vs dense" in text
    assert "not shown at 80 columns: seen, seeds, MACs, params." in text
    assert "seeds" not in "".join(table)


def test_the_terminal_says_what_matters():
    lines = printed(board(), {config_of("uniform")}).splitlines()
    assert lines[0] == "mini / vqav2 / blip-mini"
    assert lines[2].split()[0] == "dense"
    assert sum(line.startswith("*") for line in lines) == 1
    assert next(line for line in lines if line.startswith("*")).split()[1] == "uniform"
    assert any(line.startswith("── structured, trained ─") for line in lines)
    assert "Split val (task version 1): 1,500 samples in 300 clusters." in lines
    assert "flagged uniform: batch-size-backed-off" in lines
    assert lines[-2:] == ["rows marked * are local runs in runs/", "mini ranks do not predict full ranks"]
    assert "±" in next(line for line in lines if "upop" in line)


def test_notes_only_where_they_apply():
    text = printed([record(suite="full", recipe="")])
    assert "local runs" not in text
    assert "mini" not in text.replace("blip-mini", "")


def test_a_pipe_gets_aligned_text_without_colours():
    lines = printed(board()).splitlines()
    assert "\x1b" not in "".join(lines)
    assert len({line.index("]") for line in lines if "]" in line}) == 1
    assert all(len(line) <= 120 for line in lines)


def test_colour_marks_only_differences_that_exclude_zero():
    records = [
        record(),
        record("worse", sparsity=0.5, accuracy=0.5),
        record("same", sparsity=0.5, accuracy=0.801),
    ]
    text = printed(records, force_terminal=True, width=120, color_system="standard")
    worse, same = (next(line for line in text.splitlines() if name in line) for name in ("worse", "same"))
    assert "\x1b[31m" in worse
    assert "\x1b[31m" not in same


def test_recipes_and_options_name_a_row():
    records = [
        record("wanda", sparsity=0.5, recipe=r, options={"n": n}, cell=r) for n, r in enumerate(("mini", "paper"))
    ]
    text = printed(records)
    assert "  wanda  " in text
    assert "wanda (paper)" in text


def test_ascii_terminals_get_ascii_rules():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    show(rows(board()[:3]), set(), Console(file=stream))
    stream.flush()
    assert b"-- unstructured, untrained ---" in stream.buffer.getvalue()
