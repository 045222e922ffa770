"""ScienceQA, TextVQA, ChartQA and DocVQA: their official layouts, made here as the published files are, and totals
against the reference evaluators' recorded ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tasks.asked import make, recorded, recorded_here, totals
from vlbench.errors import UserError
from vlbench.task import held_out, refuse_report_ids


def problem(**more: Any) -> dict[str, Any]:
    return {
        "question": "Which?", "choices": ["a cat", "a dog"], "answer": 1, "hint": "", "image": "image.png",
        "grade": "grade2", "subject": "natural science", "topic": "biology", "category": "c", "skill": "Identify",
        "lecture": "", "solution": "", **more,
    }  # fmt: skip


def scienceqa(root: Path, problems: dict[str, Any], split: str = "test") -> Path:
    (root / "images" / split).mkdir(parents=True)
    (root / "problems.json").write_text(json.dumps(problems))
    (root / "pid_splits.json").write_text(json.dumps({split: list(problems)}))
    return root


@recorded_here
@pytest.mark.parametrize(("rule", "name"), [("official", "llava"), ("lmms", "lmms_eval")])
def test_scienceqa_equals_the_evaluators(rule: str, name: str, tmp_path: Path) -> None:
    told = recorded("scienceqa")
    task = make("scienceqa", scienceqa(tmp_path, told["problems"]), rule=rule)
    samples = task.samples("test")
    said = {p["question_id"]: p["text"] for p in told["predictions"]}
    shown = [i for i, p in told["problems"].items() if p["image"]]
    assert [s.id for s in samples] == shown
    right = dict(zip(said, told[name]["correct"], strict=True))
    found = totals(task, samples, [said[i] for i in shown])
    assert found["accuracy"] == pytest.approx(100 * sum(right[i] for i in shown) / len(shown), abs=1e-10)
    if rule == "official":
        assert found["accuracy"] == pytest.approx(told["llava"]["image_accuracy"], abs=1e-10)
        unread = [i for i, p in zip(said, told["llava"]["parsed"], strict=True) if p not in "ABCDE" and i in shown]
        assert found["unparsed"] >= 100 * len(unread) / len(shown) > 0


def test_scienceqa_is_asked_as_the_evaluators_ask(tmp_path: Path) -> None:
    problems = {"1": problem(hint="A hint."), "2": problem(image=None), "3": problem()}
    scienceqa(tmp_path, problems)
    one, other = make("scienceqa", tmp_path).samples("test")
    assert one.text == "A hint.\nWhich?\nA. a cat\nB. a dog"
    assert (other.text, other.candidates, other.target) == ("Which?\nA. a cat\nB. a dog", ("A", "B"), {"B": 1.0})
    assert one.images == (tmp_path / "images" / "test" / "1" / "image.png",)
    lmms = make("scienceqa", tmp_path, rule="lmms")
    assert lmms.samples("test")[0].text.startswith("Context: A hint.\nWhich?")
    assert lmms.settings("test")["prompt"] == "{}\nAnswer with the option's letter from the given choices directly."
    assert lmms.roles() == {"train": "train", "select": "minival", "report": "test"}


@pytest.mark.parametrize(
    ("problems", "sentence"),
    [({"1": problem(answer=2)}, "2 choices, and answer 2"), ({"1": {"question": "x", "image": "i"}}, "not valid"),
     ({"../1": problem()}, "no file inside")],
)  # fmt: skip
def test_wrong_problems_are_named(problems: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        make("scienceqa", scienceqa(tmp_path, problems)).samples("test")


def textvqa(root: Path, rows: list[dict[str, Any]], split: str = "val") -> Path:
    (root / "train_images").mkdir(exist_ok=True)
    (root / "test_images").mkdir(exist_ok=True)
    (root / f"TextVQA_0.5.1_{split}.json").write_text(json.dumps({"data": rows}))
    return root


@recorded_here
def test_textvqa_equals_the_evaluators(tmp_path: Path) -> None:
    told = recorded("textvqa")
    rows = [{**row, "question_id": i, "image_id": f"i{i // 2}"} for i, row in enumerate(told["rows"])]
    textvqa(tmp_path, rows)
    said = [row["prediction"] for row in told["rows"]]
    for rule, name in (("official", "official"), ("lmms", "lmms_eval"), ("vlmevalkit", "vlmevalkit")):
        task = make("textvqa", tmp_path, rule=rule)
        wanted = told[name]["per_question"]
        assert totals(task, task.samples("val"), said)["accuracy"] == pytest.approx(
            100 * sum(wanted) / len(wanted), abs=1e-10
        )


@recorded_here
def test_textvqa_is_asked_as_lmms_eval_asks(tmp_path: Path) -> None:
    told = recorded("textvqa")["prompt"]
    textvqa(tmp_path, [{"question_id": 1, "image_id": "x", "question": told["question"], "answers": ["a"] * 10}])
    words = {"data": [{"image_id": "x", "ocr_tokens": told["ocr_tokens"]}]}
    (tmp_path / "TextVQA_Rosetta_OCR_v0.2_val.json").write_text(json.dumps(words))
    for ocr, name in ((True, "lmms_eval_with_ocr"), (False, "lmms_eval_without_ocr")):
        task = make("textvqa", tmp_path, rule="lmms", ocr=ocr)
        assert task.settings("val")["prompt"].replace("{}", task.samples("val")[0].text) == told[name]
    assert make("textvqa", tmp_path).samples("val")[0].text == told["question"]


def test_textvqas_train_is_cut_by_image_and_test_is_uploaded(tmp_path: Path) -> None:
    rows = [{"question_id": i, "image_id": f"i{i // 2}", "question": "q", "answers": ["a"] * 10} for i in range(200)]
    textvqa(tmp_path, rows, "train")
    textvqa(tmp_path, [{"question_id": 1000, "image_id": "t", "question": "q"}], "test")
    task = make("textvqa", tmp_path)
    kept = {s.cluster for s in task.samples("select")}
    assert kept == {f"i{i}" for i in range(100) if held_out(f"i{i}", 5)}
    assert not kept & {s.cluster for s in task.samples("train")}
    refuse_report_ids(task, task.samples("train"))
    assert (task.labelled("test"), task.labelled("val")) == (False, True)
    file = task.write_upload(task.samples("test"), [{"answer": "stop"}], tmp_path)
    assert json.loads(file.read_text()) == [{"question_id": 1000, "answer": "stop"}]
    assert make("textvqa", tmp_path, ocr=True).missing("test")


@recorded_here
def test_chartqa_equals_the_evaluators(tmp_path: Path) -> None:
    told = recorded("chartqa")
    (tmp_path / "test" / "png").mkdir(parents=True)
    order: list[int] = []
    for half in ("human", "augmented"):
        mine = [i for i, row in enumerate(told["rows"]) if row["type"] == f"{half}_test"]
        rows = [{"imgname": f"{i}.png", "query": "q", "label": told["rows"][i]["target"]} for i in mine]
        (tmp_path / "test" / f"test_{half}.json").write_text(json.dumps(rows))
        order += mine
    for rule, name in (("official", "lmms_eval"), ("vlmevalkit", "vlmevalkit")):
        task = make("chartqa", tmp_path, rule=rule)
        samples = task.samples("test")
        found = totals(task, samples, [told["rows"][i]["prediction"] for i in order])
        assert found["accuracy"] == pytest.approx(100 * sum(told[name]["correct"]) / len(order), abs=1e-10)
        if rule == "official":
            wanted = [100 * told[name][half] for half in ("human", "augmented")]
            assert [found["accuracy/human"], found["accuracy/augmented"]] == pytest.approx(wanted, abs=1e-10)
    assert samples[0].id == "human/0"
    assert task.settings("test")["prompt"] == "{}\nAnswer the question with a single word."


@recorded_here
def test_docvqa_equals_the_evaluators(tmp_path: Path) -> None:
    told = recorded("docvqa")
    (tmp_path / "documents").mkdir()
    rows = [{**r, "questionId": i, "question": "q", "image": f"documents/{i}.png", "docId": i // 3}
            for i, r in enumerate(told["rows"])]  # fmt: skip
    (tmp_path / "val_v1.0.json").write_text(json.dumps({"data": rows}))
    said = [row["prediction"] for row in told["rows"]]
    task = make("docvqa", tmp_path)
    assert totals(task, task.samples("val"), said)["anls"] == pytest.approx(100 * told["lmms_eval"]["mean"], abs=1e-10)
    mmf = make("docvqa", tmp_path, rule="mmf")
    wanted = [1.0 if v is None else v for v in told["stvqa_mmf"]["anls"]]
    assert totals(mmf, mmf.samples("val"), said)["anls"] == pytest.approx(100 * sum(wanted) / len(wanted), abs=1e-10)
    assert task.samples("val")[3].images == (tmp_path / "documents" / "3.png",)
    (tmp_path / "val_v1.0.json").write_text(json.dumps({"data": [{**rows[0], "answers": []}]}))
    with pytest.raises(UserError, match="question 0 has no answers"):
        make("docvqa", tmp_path).samples("val")
