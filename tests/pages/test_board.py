"""Oracles: the rows that a page is made of, and the standard library's JSON and HTML readers."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.leaderboard.factory import board, record
from vlbench.leaderboard import metric
from vlbench.leaderboard.published import load_published
from vlbench.leaderboard.rows import rows_of
from vlbench.leaderboard.tables import GENERATED
from vlbench.pages.board import page
from vlbench.publishing.regenerate import boards
from vlbench.records.record import write_record

EVIL = "<script>alert(1)</script>\"'&--></script><img src=x onerror=alert(2)>@@DATA@@\u2028"


def made(records=None) -> str:
    return page("mini", rows_of(records or board()), load_published())


def data_of(text: str) -> dict:
    (block,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(block)


class Tags(HTMLParser):
    """Every tag with its attributes, and the texts of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": []}
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside in self.texts:
            self.texts[self.inside].append(data)


def test_a_page_holds_every_row_as_the_tables_print_it():
    pairs = rows_of(board())
    (one,) = data_of(made())["boards"]
    assert [row["cells"][0] for row in one["rows"]] == [
        "dense", "finetune", "wanda calibration=128", "wanda calibration=64", "uniform", "upop",
        "magnitude", "magnitude",
    ]  # fmt: skip
    upop = next(row for row in one["rows"] if row["cells"][0] == "upop")
    row, records = next(pair for pair in pairs if pair[0].method == "upop")
    assert len(records) == 3
    assert upop["keys"][5] == pytest.approx(row.value, abs=1e-6)
    assert upop["cells"][7].startswith("3 ")
    assert upop["towers"] == [["vision", 0.5]]
    assert upop["size"][:2] == [row.nonzero, row.macs]
    dense = pairs[0][0]
    assert upop["fraction"][0] == pytest.approx(row.nonzero / dense.nonzero, abs=1e-6)
    assert upop["fraction"][2:] == pytest.approx([v / dense.value for v in (row.value, row.low, row.high)], abs=1e-6)


def test_flags_are_explained_where_a_row_has_them():
    flagged = record("obd", sparsity=0.5, flags=["contaminated", "modality collapse: vision"])
    one, two = (data_of(made(records))["boards"][0]["flags"] for records in (board(), [record(), flagged]))
    assert one == []
    assert [flag for flag, _ in two] == ["contaminated", "modality collapse"]
    assert "trained on the split" in two[0][1]


def test_secondary_metrics_are_told_on_demand():
    more = record("obd", sparsity=0.5)
    more = more.model_copy(update={"metrics": {**more.metrics, "accuracy/number": 12.34}})
    (only,) = data_of(made([more]))["boards"][0]["rows"]
    assert only["metrics"] == [["accuracy/number", "12.34"]]


def test_where_lower_is_better_a_loss_is_good(monkeypatch):
    """Oracle: a perplexity that fell."""
    monkeypatch.setattr(metric, "is_higher", lambda task, metric: False)
    fell = record("upop", sparsity=0.5, accuracy=0.5)
    shown = data_of(made([record(), fell]))["boards"][0]
    assert shown["higher"] is False
    assert [row["verdict"] for row in shown["rows"]] == ["", "good"]


def test_towers_are_means_over_seeds():
    towers = ({"vision": 0.2, "text": 0.8}, {"vision": 0.4, "text": 0.6})
    changed = [
        r.model_copy(update={"parameters": r.parameters.model_copy(update={"towers": towers[r.seed]})})
        for r in board()
        if r.method == "upop" and r.seed in (0, 1)
    ]
    (one,) = data_of(made([record(), *changed]))["boards"]
    assert one["rows"][1]["towers"] == [["vision", pytest.approx(0.3)], ["text", pytest.approx(0.7)]]


def test_nothing_in_data_is_ever_html():
    evil = board()
    evil[0] = evil[0].model_copy(update={"flags": [EVIL]})
    evil = [r.model_copy(update={"model": EVIL, "label": EVIL, "metric": EVIL}) for r in evil]
    text = made(evil)
    tags = Tags(text)
    assert [tag for tag, _ in tags.tags].count("script") == 2
    assert not [tag for tag, attributes in tags.tags if tag == "img" or any(a.startswith("on") for a in attributes)]
    (block,) = re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert not set("<>&") & set(block)  # not even a part of "<!--<script", after which the element would not end
    (one,) = data_of(text)["boards"]
    assert EVIL in one["title"]
    assert one["rows"][0]["cells"][9] == EVIL
    assert [tag for tag, _ in Tags(page(EVIL, rows_of(board()), ())).tags].count("script") == 2


def test_a_page_fetches_nothing_and_runs_only_its_own_script():
    text = made()
    tags = Tags(text)
    assert not [tag for tag, a in tags.tags if {"src", "href"} & a.keys() or tag in ("link", "iframe", "object")]
    assert "http" not in re.sub(r"http://www\.w3\.org/2000/svg|github\.com|http-equiv", "", text)
    policy = next(a["content"] for tag, a in tags.tags if tag == "meta" and "http-equiv" in a)
    for kind in ("script", "style"):
        own = tags.texts[kind][-1]
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_published_results_are_apart_and_name_their_protocol():
    (one,) = data_of(made())["boards"]
    assert one["tiny"]
    assert all(quote["protocol"] for quote in one["published"])
    half = next(quote for quote in one["published"] if quote["name"] == "UPop 2x")
    assert half["fraction"] == [pytest.approx(211.3 / 361.6, abs=1e-6), pytest.approx(109.4 / 186.1, abs=1e-6),
                                pytest.approx(76.3 / 77.4, abs=1e-6)]  # fmt: skip
    assert not any("published" in cell for row in one["rows"] for cell in row["cells"])


def test_boards_of_one_task_and_model_are_told_apart():
    other = [r.model_copy(update={"evaluation": {"precision": "bf16"}, "cell": r.cell + "x"}) for r in board()]
    told = [one["id"] for one in data_of(made([*board(), *other]))["boards"]]
    assert len(told) == len(set(told)) == 2


def test_rows_stand_on_lines_of_their_own_and_the_head_says_who_made_it():
    text = made()
    assert sum(line.startswith('{"cells":') for line in text.split("\n")) == 8
    assert GENERATED in text[:400]  # so that a page without results is found to be a stray one


def test_rows_without_costs_or_comparison_are_shown():
    alone = record("mine", sparsity=0.5, pattern="unstructured", macs=None, macs_dense=None, vs_dense=None, cell="m")
    (one,) = data_of(made([alone]))["boards"]
    assert one["rows"][0]["size"][1] is None
    assert one["rows"][0]["cells"][6] == ""


def test_bytes_do_not_depend_on_hash_seed_locale_or_time_zone(tmp_path: Path):
    for r in board():
        write_record(tmp_path / "results" / "mini" / f"{r.cell}.json", r)
    code = (
        "import sys, hashlib; from pathlib import Path; from vlbench.publishing.regenerate import boards\n"
        "print(hashlib.sha256(boards(Path(sys.argv[1]))[Path('mini/index.html')].encode()).hexdigest())"
    )
    settings = (("0", "C.UTF-8", "UTC"), ("1", "C", "Asia/Tokyo"), ("7", "POSIX", "America/New_York"))
    found = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "results")], check=True, capture_output=True, text=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": locale, "TZ": zone},
        ).stdout
        for seed, locale, zone in settings
    }  # fmt: skip
    text = boards(tmp_path / "results")[Path("mini/index.html")]
    assert found == {hashlib.sha256(text.encode()).hexdigest() + "\n"}
