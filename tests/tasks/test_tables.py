"""Benchmarks that come as one table: totals against the recorded ones of the evaluators (1e-10), and how they ask."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tasks.asked import make, recorded, recorded_here, totals
from tests.tasks.tables import cell, picture, prepared, question, write_parquet, write_tsv
from vlbench.errors import UserError

FOUR = {"A": "red", "B": "blue", "C": "green", "D": "white"}


def mmbench(root: Path, rows: list[dict[str, Any]], name: str = "MMBench_DEV_EN.tsv") -> None:
    write_tsv(root / name, [{"image": cell(row["index"] % 1_000_000), **row} for row in rows])


@recorded_here
@pytest.mark.parametrize("rule", ["vlmevalkit", "lmms"])
def test_mmbench_equals_the_evaluators(rule: str, tmp_path: Path) -> None:
    told = recorded("mmbench")["circular"]
    rows = [{k: v for k, v in row.items() if k != "prediction" and v != "nan"} for row in told["rows"]]
    mmbench(tmp_path, rows)
    task = prepared("mmbench", tmp_path, "dev", rule=rule)
    samples = task.samples("dev")
    said = [row["prediction"] for row in told["rows"]]
    found = totals(task, samples, said)
    kit, lmms = told["vlmevalkit_exact_matching"], told["lmms_eval_static"]
    wanted = kit["overall"] if rule == "vlmevalkit" else lmms["overall"]
    assert found["accuracy"] == pytest.approx(100 * wanted, abs=1e-10)
    if rule == "vlmevalkit":
        assert found["vanilla"] == pytest.approx(100 * kit["vanilla"], abs=1e-10)
        assert found["accuracy/cp"] == pytest.approx(100 * kit["report"]["CP"], abs=1e-10)
        assert found["accuracy/fp-s"] == pytest.approx(100 * kit["report"]["FP-S"], abs=1e-10)
        scores = task.scores(samples, [{"answer": text} for text in said])
        hits = {s.id: int(row[0]) for s, row in zip(samples, scores, strict=True) if row[1]}
        assert hits == kit["hit_of_question"]
        sums = np.array(scores).sum(0, keepdims=True)
        assert task.corpus_metric(sums)[0] == pytest.approx(found["accuracy"], abs=1e-12)
    assert len({s.cluster for s in samples}) == 30
    assert len({s.images for s in samples}) == 30


def test_mmbench_is_asked_as_each_evaluator_asks(tmp_path: Path) -> None:
    mmbench(tmp_path, [question(0, hint="Look.", image=cell(0)), question(1_000_000, image="0")])
    assert prepared("mmbench", tmp_path, "dev").samples("dev")[0].text == (
        "Hint: Look.\nQuestion: Question 0?\nOptions:\nA. red\nB. blue\n"
        "Please select the correct answer from the options above. \n"
    )
    first, second = prepared("mmbench", tmp_path, "dev", rule="lmms").samples("dev")
    assert first.text == (
        "Look. Question 0? There are several options:\nA. red\nB. blue\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert (first.images, first.cluster) == (second.images, second.cluster)
    write_tsv(tmp_path / "MMBench_DEV_EN.tsv", [question("x")])
    task = prepared("mmbench", tmp_path, "dev")
    with pytest.raises(UserError, match="index 'x'"):
        task.samples("dev")


def test_mmbenchs_test_split_is_uploaded(tmp_path: Path) -> None:
    mmbench(tmp_path, [question(5, answer="")], "MMBench_TEST_EN.tsv")
    task = prepared("mmbench", tmp_path, "test")
    assert not task.labelled("test")
    file = task.write_upload(task.samples("test"), [{"answer": "A."}], tmp_path)
    with file.open(newline="") as text:
        (row,) = csv.DictReader(text, delimiter="\t")
    assert (row["index"], row["A"], row["C"], row["prediction"]) == ("5", "red", "", "A.")


@recorded_here
def test_mmstar_equals_lmms_eval(tmp_path: Path) -> None:
    told = recorded("small")
    rows = [question(i, image=cell(i), answer=r["answer"], category=r["category"], l2_category=r["l2_category"], **{
        k: v for k, v in FOUR.items() if k not in "AB"}) for i, r in enumerate(told["mmstar"])]  # fmt: skip
    write_tsv(tmp_path / "MMStar.tsv", rows)
    task = prepared("mmstar", tmp_path, "val")
    found = totals(task, task.samples("val"), [r["prediction"] for r in told["mmstar"]])
    assert found["accuracy"] == pytest.approx(100 * told["mmstar_plain_mean"], abs=1e-10)
    assert found["average"] == pytest.approx(100 * told["mmstar_average"], abs=1e-10)


def test_mmstars_options_may_stand_in_the_question(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    text = "Which?\nOptions: A: a red, round one, B: blue, C: green, D: white"
    row = {"index": 0, "question": text, "image": {"bytes": picture(), "path": ""}, "answer": "B", "category": "math"}
    write_parquet(tmp_path / "mmstar.parquet", [row])
    task = prepared("mmstar", tmp_path, "val", rule="vlmevalkit")
    (sample,) = task.samples("val")
    assert (sample.text, sample.candidates) == (text, ("A", "B", "C", "D"))
    assert task.row(sample).options == {"A": "a red, round one", "B": "blue", "C": "green", "D": "white"}
    assert task.score(sample, {"answer": "It is blue."}) == [1.0, 0.0]


@recorded_here
@pytest.mark.parametrize(
    ("name", "file", "split"), [("seedbench", "SEEDBench_IMG.tsv", "test"), ("ai2d", "AI2D_TEST.tsv", "test")]
)
def test_seedbench_and_ai2d_equal_lmms_eval(name: str, file: str, split: str, tmp_path: Path) -> None:
    told = recorded("small")
    write_tsv(tmp_path / file, [{**question(i), **FOUR, "answer": r["answer"]} for i, r in enumerate(told[name])])
    task = prepared(name, tmp_path, split)
    samples = task.samples(split)
    scores = task.scores(samples, [{"answer": r["prediction"]} for r in told[name]])
    assert [score[0] for score in scores] == [r["correct"] for r in told[name]]
    asked = task.settings(split)["prompt"].replace("{}", samples[0].text)
    assert asked == (
        "Question 0?\nA. red\nB. blue\nC. green\nD. white\n"
        "Answer with the option's letter from the given choices directly."
    )


@recorded_here
def test_realworldqa_equals_lmms_eval(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    told = recorded("small")["realworldqa"]
    rows = [{"question": "Which?", "answer": r["answer"], "image": {"bytes": picture(), "path": ""}, "id": i}
            for i, r in enumerate(told)]  # fmt: skip
    write_parquet(tmp_path / "data" / "test-0.parquet", rows)
    task = prepared("realworldqa", tmp_path, "test")
    scores = task.scores(task.samples("test"), [{"answer": r["prediction"]} for r in told])
    assert [score[0] for score in scores] == [r["correct"] for r in told]
    with pytest.raises(UserError, match="need the options in columns"):
        make("realworldqa", tmp_path, rule="vlmevalkit").samples("test")


@recorded_here
def test_ocrbench_equals_lmms_eval(tmp_path: Path) -> None:
    told = recorded("small")["ocrbench"]
    texts = [r["answer"] if isinstance(r["answer"], str) else repr(r["answer"]) for r in told]
    rows = [{"index": i, "image": cell(i), "question": "q", "answer": text, "dataset": told[i]["dataset"]}
            for i, text in enumerate(texts)]  # fmt: skip
    write_tsv(tmp_path / "OCRBench.tsv", rows)
    task = prepared("ocrbench", tmp_path, "test", rule="lmms")
    scores = task.scores(task.samples("test"), [{"answer": r["prediction"]} for r in told])
    assert [score[0] for score in scores] == [float(r["correct"]) for r in told]
    official = make("ocrbench", tmp_path)
    sample = official.samples("test")[0]
    assert (task.options.rule, official.options.rule, sample.text) == ("lmms", "official", "q")


def test_ocrbenchs_official_rule_leaves_full_width_signs(tmp_path: Path) -> None:
    write_tsv(tmp_path / "OCRBench.tsv", [question(0, answer="['ABC']"), question(1, answer="x")])
    for rule, right in (("official", 0.0), ("lmms", 1.0)):
        task = prepared("ocrbench", tmp_path, "test", rule=rule)
        assert task.score(task.samples("test")[0], {"answer": "\uff21\uff22\uff23"}) == [right, 0.0]


def mmmu_row(row: dict[str, Any], number: int) -> dict[str, Any]:
    options = row.get("options") or list(row.get("index2ans", {}).values())
    image = {"bytes": picture(number), "path": ""}
    return {
        "id": f"{row.get('id', 'validation_Math_1')}{number:03}", "question": "<image 1>?",
        "options": repr(options), "answer": repr(row["answer"]) if isinstance(row["answer"], list) else row["answer"],
        "question_type": row.get("question_type", "multiple-choice" if options else "open"), "image_1": image,
        "image_2": image if number == 0 else None, "subfield": "s",
    }  # fmt: skip


@recorded_here
def test_mmmu_equals_its_own_code(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    told = recorded("mmmu")
    rows = [*told["real_responses"], *told["open"]]
    write_parquet(tmp_path / "Math" / "validation-0.parquet", [mmmu_row(r, n) for n, r in enumerate(rows)])
    task = prepared("mmmu", tmp_path, "val")
    samples = task.samples("val")
    assert (len(samples[0].images), len(samples[1].images)) == (2, 1)
    assert len(make("mmmu", tmp_path, images="first").samples("val")[0].images) == 1
    scores = task.scores(samples, [{"answer": r["response"]} for r in rows])
    right = [r["official"] == r["answer"] if r.get("question_type") == "multiple-choice" else r["official_correct"]
             for r in rows]  # fmt: skip
    assert [score[0] for score in scores] == [float(one) for one in right]
    drawn = [n for n, r in enumerate(rows) if r.get("official") == "RANDOM"]
    letters = [n for n, r in enumerate(rows) if r.get("question_type") == "multiple-choice"]
    assert [n for n in letters if scores[n][1]] == drawn
    assert drawn
    shared = make("mmmu", tmp_path, guess="share")
    assert shared.score(samples[drawn[0]], {"answer": rows[drawn[0]]["response"]})[0] == pytest.approx(
        1 / len(rows[drawn[0]]["index2ans"])
    )
    ranked = make("mmmu", tmp_path, decoding="rank").samples("val")
    assert len(ranked) == sum(r.get("question_type") == "multiple-choice" for r in rows)
    assert all(sample.candidates for sample in ranked)
    assert task.groups(samples[-1:]) == {samples[-1].id: "science"}


def test_mmmus_table_has_both_splits_and_open_questions_without_options(tmp_path: Path) -> None:
    two = repr([cell(1), cell(2)])
    rows = [
        question(1, id="validation_Art_1", image=two, split="validation", category="Art"),
        question(2, id="dev_Art_1", split="dev"),
        question(3, id="validation_Music_1", split="validation", A="", B="", answer="7"),
    ]
    write_tsv(tmp_path / "MMMU_DEV_VAL.tsv", rows)
    task = prepared("mmmu", tmp_path, "val")
    first, last = task.samples("val")
    assert (len(first.images), first.id, task.groups([first])[first.id]) == (2, "validation_Art_1", "art")
    assert first.text.endswith("\n\nAnswer with the option's letter from the given choices directly.")
    assert last.text == "Question 3?\n\nAnswer the question using a single word or phrase."
    assert task.score(last, {"answer": "It is 7."}) == [1.0, 0.0]
    assert [s.id for s in prepared("mmmu", tmp_path, "dev").samples("dev")] == ["dev_Art_1"]
    assert task.roles() == {"select": "dev", "report": "val"}
    with pytest.raises(UserError, match="has no training data"):
        task.split_for("train")
