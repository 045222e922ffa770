"""A page of a real run of a tiny model. Oracle: the run's own files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.lab import Lab, write_toml
from tests.leaderboard.factory import record
from tests.pages.browser import Browser, needs_chromium
from vlbench.images.maps import LabelMap, pack_map
from vlbench.pages.curves import curve
from vlbench.pages.run import _card, _text, _undisputed
from vlbench.pages.samples import MOST, Shown, chosen
from vlbench.plugins.table import forget
from vlbench.records.record import write_record
from vlbench.task import Sample

EVIL = "<script>alert(1)</script>"


def test_a_run_has_a_page_of_its_samples(lab: Lab) -> None:
    assert lab.run("method=upop", "recipe=mini", "upop_search.steps=3", "upop_search.interval=1", "finetune.steps=2",
                   "upop_search.batch_size=6", "finetune.batch_size=6").code == 0  # fmt: skip
    folder = next(path for path in (lab.folder / "runs").iterdir() if "upop" in path.name)
    told = lab("page", folder.name)
    assert told.out == f"wrote runs/{folder.name}/page.html\n"
    assert told.err == ""
    text = (folder / "page.html").read_text(encoding="utf-8")
    result = json.loads((folder / "result.json").read_text())
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    dense = next(path for path in (lab.folder / "runs").iterdir() if "dense" in path.name)
    theirs = [json.loads(line) for line in (dense / "predictions.jsonl").read_text().splitlines()]
    assert text.count("<article") == len(lines) == 6
    assert text.count("data:image/jpeg;base64,") == 6
    lost = sum(a["score"][0] < b["score"][0] for a, b in zip(lines, theirs, strict=True))
    assert f"the dense model is better on {lost}" in text
    assert f"{result['interval']['value']:.2f}" in text
    assert all(
        name in text
        for name in ("upop_search: training loss", "upop_search: ratio aimed at", "finetune: training loss")
    )
    again = (lab("page", str(folder)), (folder / "page.html").read_text(encoding="utf-8"))
    assert again[1] == text

    # The gates that a search notes are those that its cut removes.
    manifest = json.loads((folder / "model" / "vlbench.json").read_text())
    kept = sum(len(units) for _, units in manifest["cuts"][0].values())
    selected = manifest["log"]["upop_search"]["selected"]
    units = 2 * (8 + 64)  # of the lab's model: dimensions of a head and hidden neurons, in both layers
    assert selected[-1] == units - kept
    assert len(selected) == len(manifest["log"]["upop_search"]["updates"])

    write_toml(lab.folder, {"imagenet": lab.folder / "elsewhere"})
    forget()
    told = lab("page", folder.name)
    assert told.code == 0
    assert told.err.startswith("no samples: imagenet lacks data")
    assert "<article" not in (folder / "page.html").read_text(encoding="utf-8")


def test_other_data_than_those_of_the_run_show_no_samples(lab: Lab) -> None:
    assert lab.run("method=dense").code == 0
    (folder,) = (path for path in (lab.folder / "runs").iterdir() if "dense" in path.name)
    next((lab.data / "val").rglob("*.png")).unlink()
    told = lab("page", folder.name)
    assert told.err.startswith("no samples: the data of imagenet are not those that")


def test_a_page_of_nothing_is_refused(lab: Lab) -> None:
    assert "there is no run 'nothing'" in lab.refused("page", "nothing")


def shown(number: int, value: float, dense: float | None) -> Shown:
    sample = Sample(str(number), (), text=f"question {number}", target=True)
    line = {"id": str(number), "prediction": {"answer": False}, "score": value / 100, "status": "ok"}
    return Shown(sample, line, value, None if dense is None else line, dense)


def test_what_was_lost_comes_first_and_most_of_it() -> None:
    lost = [shown(i, 0, 100) for i in range(100, 200)]
    slightly = [shown(i, 99, 100) for i in range(50)]
    gained = [shown(i, 100, 0) for i in range(300, 350)]
    same = [shown(i, 100, 100) for i in range(400, 900)]
    found = chosen([*slightly, *same, *gained, *lost])
    assert len(found) <= MOST
    assert [one.kind for one in found].count("lost") == 30
    assert [one.kind for one in found].count("gained") == 8
    assert 6 <= [one.kind for one in found].count("same") <= 12
    assert all(one in lost for one in found[:30])  # the greatest losses
    assert len(chosen([shown(i, 0, None) for i in range(1000)])) == MOST
    assert chosen([]) == []


def test_texts_of_a_sample_are_escaped_and_a_missing_image_is_told(tmp_path: Path) -> None:
    sample = Sample(EVIL, (tmp_path / f"{EVIL[:7]}.png",), text=EVIL, target=EVIL)
    line = {"id": EVIL, "prediction": {"answer": EVIL}, "score": 0.0, "status": "ok"}
    text = _card(Shown(sample, line, 0, line, 100), "answer")
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 5
    assert "does not decode" in text


def test_maps_of_classes_are_pictures(tmp_path: Path) -> None:
    numbers = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(numbers, mode="L").save(tmp_path / "label.png")
    sample = Sample("1", (), target=LabelMap(tmp_path / "label.png", zero_ignored=True))
    line = {"id": "1", "prediction": {"map": pack_map(numbers)}, "score": [1.0], "status": "ok"}
    text = _card(Shown(sample, line, 0, line, 100), "segment")
    assert text.count("data:image/png;base64,") == 3
    assert re.findall("<figcaption>(.*?)</figcaption>", text) == ["right", "dense (100)", "this run (0)"]


def test_a_single_answer_is_told_without_its_score() -> None:
    assert [_text(_undisputed(t)) for t in ({"4": 1.0}, {"4": 0.9}, {"a": 0.6, "b": 0.3}, "x", True)] == [
        "4", "4 0.9", "a 0.6; b 0.3", "x", "yes",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "yes"),
        ({"answer": "red"}, "red"),
        ({"red": 0.6, "blue": 0.4}, "red 0.6; blue 0.4"),
        (["a", "b", "a"], "a (x2), b"),
        ({"image_ranks": [0, 0], "text_rank": 3}, "image_ranks 0 (x2); text_rank 3"),
        (list(range(20)), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 ..."),
    ],
)
def test_answers_are_told_for_people(value: object, text: str) -> None:
    assert _text(value) == text


def test_a_curve_goes_through_its_points() -> None:
    text = curve("loss <x>", range(3), [1.0, 3.0, 2.0])
    (points,) = re.findall('points="(.*?)"', text)
    xs, ys = zip(*(map(float, point.split(",")) for point in points.split()), strict=True)
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert ys[0] > ys[2] > ys[1]  # down the screen is less
    assert "<x>" not in text
    assert "nan" not in curve("flat", [0], [1.0])


@needs_chromium
def test_a_page_opens_in_a_browser_without_errors(lab: Lab) -> None:
    folder = lab.folder / "runs" / "made"
    write_record(
        folder / "result.json", record("magnitude", sparsity=0.5, pattern="unstructured", cell="made", label=EVIL)
    )
    (folder / "cell.json").write_text(json.dumps({"words": {"task": "vqav2"}}))
    (folder / "predictions.jsonl").write_text("")
    assert lab("page", str(folder)).code == 0
    browser = Browser()
    try:
        browser.window(390)
        browser.open(folder / "page.html")
        assert browser.errors == []
        assert browser.run("document.querySelector('h1').textContent") == "made"
        assert browser.run("document.documentElement.scrollWidth") <= 390
    finally:
        browser.close()
