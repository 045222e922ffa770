"""Oracle: the official evaluator, run on real and on noisy ground truth (shared/oracles/metrics/vqa)."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

vqa = importlib.import_module("vlbench.tasks._vqa_accuracy")

PREDICTIONS = ("majority", "always_yes", "random_human", "noisy_majority", "noisy_human", "special")
TEN = ("cat", "cat", "cat", "cat", "dog", "dog", "dog", "cow", "cow", "fox")


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_normaliser_gives_every_string_of_the_oracle(shared: Path) -> None:
    rows = load(shared / "oracles/metrics/vqa/normaliser_strings_a.json")
    assert len(rows) == 400
    wrong = {row["input"]: (vqa.normalise(row["input"]), row["output"]) for row in rows}
    assert {text: pair for text, pair in wrong.items() if pair[0] != pair[1]} == {}


@pytest.mark.parametrize("truth", ["real_gt", "noisy_gt"])
@pytest.mark.parametrize("name", PREDICTIONS)
def test_accuracy_is_the_official_one(shared: Path, name: str, truth: str) -> None:
    oracles = shared / "oracles/metrics/vqa"
    real = shared / "data/vqa_mini/vqa2_coco_subset/annotations.json"
    annotations = load(real if truth == "real_gt" else oracles / "annotations_noisygt_a.json")["annotations"]
    said = {row["question_id"]: row["answer"] for row in load(oracles / "predictions_a.json")[name]}
    official = load(oracles / "results_a.json")[name][truth]["official"]

    scores = {
        row["question_id"]: vqa.accuracy(said[row["question_id"]], [a["answer"] for a in row["answers"]])
        for row in annotations
    }
    kinds = {row["question_id"]: row["answer_type"] for row in annotations}

    assert len(scores) == 102
    for question, score in scores.items():
        assert 100 * score == pytest.approx(official["perQuestion"][str(question)], abs=1e-4), question
    assert 100 * fmean(scores.values()) == pytest.approx(official["overall"], abs=1e-5)
    for kind, expected in official["perAnswerType"].items():
        found = [score for question, score in scores.items() if kinds[question] == kind]
        assert 100 * fmean(found) == pytest.approx(expected, abs=1e-5), kind


@pytest.mark.parametrize(("said", "score"), [("ox", 0), ("fox", 0.3), ("cow", 0.6), ("dog", 0.9), ("cat", 1)])
def test_leave_one_out_mean_is_exact(said: str, score: float) -> None:
    assert vqa.accuracy(said, TEN) == score


def test_nothing_is_normalised_where_all_agree() -> None:
    assert vqa.accuracy("Yes.", ["yes"] * 10) == 0
    assert vqa.accuracy("Yes.", ["yes"] * 9 + ["no"]) == 1
    assert vqa.accuracy("\tyes\n", [" yes"] * 5 + ["yes "] * 5) == 1  # blanks around do not make them differ


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("." * 33, "."),  # 32 is taken for the count
        ("." * 32, ""),
        ("3.5", "3.5"),
        ("5.", "5"),
        ("u.s.", "us"),
        ("10,000-people", "10000people"),  # a comma between digits deletes all marks
        ("black-and-white", "black and white"),
        ("red/blue /green", "redblue green"),  # one blank beside a mark deletes all of its kind
        ("None", "0"),
        ("eleven", "eleven"),
        ("Im", "im"),
        ("dont", "don't"),
        ("somebody'd", "somebodyd"),
        ("shed", "shed"),
        ("a the an", ""),
        ("50%: $3", "50%: $3"),
    ],
)
def test_quirks(text: str, normal: str) -> None:
    assert vqa.normalise(text) == normal
