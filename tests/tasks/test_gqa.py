"""GQA's reader on its official layout, made here as the published files are, and its accuracy by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from vlbench.errors import UserError
from vlbench.plugins.table import table
from vlbench.task import held_out, refuse_report_ids

IMAGES = {"train": range(1, 41), "val": range(101, 104), "testdev": range(201, 204)}
CYCLE = (("yes", "verify"), ("dog", "query"), ("left", "choose"))


def row(image: str, k: int) -> dict[str, Any]:
    answer, kind = CYCLE[k]
    return {
        "semantic": [{"operation": "select", "dependencies": [], "argument": "dog (1)"}], "entailed": [],
        "equivalent": [f"{image}{k}"], "question": f"Question {k} of {image}?", "imageId": image, "isBalanced": True,
        "groups": {"global": None, "local": "06-dog"}, "answer": answer, "semanticStr": "select: dog (1)",
        "annotations": {"answer": {}, "question": {"3": "1"}, "fullAnswer": {}},
        "types": {"detailed": "existC", "semantic": "obj", "structural": kind}, "fullAnswer": f"It is {answer}.",
    }  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for split, numbers in IMAGES.items():
        for n in numbers:
            (tmp_path / "images" / f"n{n}.jpg").touch()
        rows = {f"{n:05d}{k}": row(f"n{n}", k) for n in numbers for k in range(3)}
        (tmp_path / f"{split}_balanced_questions.json").write_text(json.dumps(rows))
    return tmp_path


def make(root: Path, **options: Any) -> Any:
    cls = table("tasks").get("gqa").load()
    return cls(root, cls.Options(**options))


def test_samples(root: Path) -> None:
    task = make(root)
    found = {split: task.samples(split) for split in ("train", "select", "val", "testdev")}
    assert [s.id for s in found["testdev"]] == [f"{n:05d}{k}" for n in IMAGES["testdev"] for k in range(3)]
    first = found["testdev"][1]
    assert (first.text, first.target, first.cluster) == ("Question 1 of n201?", {"dog": 1.0}, "n201")
    assert first.images == (root / "images" / "n201.jpg",)
    kept = {s.cluster for s in found["select"]}
    assert kept == {f"n{n}" for n in IMAGES["train"] if held_out(f"n{n}", 5)}
    assert not kept & {s.cluster for s in found["train"]}
    assert len(found["train"]) + len(found["select"]) == 120
    refuse_report_ids(task, found["train"])
    assert task.missing("testdev") == task.missing("train") == []
    assert task.report_splits()[0] == task.roles()["report"] == "testdev"


def test_questions_may_lie_in_their_folder(root: Path) -> None:
    (root / "questions1.2").mkdir()
    for split in IMAGES:
        name = f"{split}_balanced_questions.json"
        (root / name).rename(root / "questions1.2" / name)
    assert len(make(root).samples("val")) == 9


@pytest.mark.parametrize(
    ("said", "score"), [("dog", 1.0), ("a dog", 1.0), ("Dog.", 1.0), ("dogs", 0.0), ("", 0.0), ("cat", 0.0)]
)
def test_an_answer_is_right_or_wrong(root: Path, said: str, score: float) -> None:
    task = make(root)
    assert task.score(task.samples("testdev")[1], {"answer": said}) == score


def test_accuracy_by_kind(root: Path) -> None:
    """By hand: three images, three kinds; all of verify, one of three of query, none of choose."""
    task = make(root)
    samples = task.samples("testdev")
    scores = [1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    assert task.aggregate(samples, scores) == pytest.approx(
        {"accuracy": 400 / 9, "accuracy/verify": 100.0, "accuracy/query": 100 / 3, "accuracy/choose": 0.0}
    )
    assert task.groups(samples)["002011"] == "query"
    assert set(task.groups(task.samples("select")).values()) <= {"verify", "query", "choose"}


def test_settings(root: Path) -> None:
    assert make(root).settings("testdev") == {"decoding": "generate", "k_test": 128, "candidates": []}
    own = make(root, decoding="rank", prompt="Q: {} A:", beams=2, max_length=3).settings("testdev")
    assert own["candidates"] == ["dog", "left", "yes"]
    assert (own["prompt"], own["beams"], own["max_length"]) == ("Q: {} A:", 2, 3)
    with pytest.raises(UserError, match="min_count=50"):
        make(root, decoding="rank", min_count=50).settings("testdev")
    with pytest.raises(ValidationError, match=r"has no \{\} where the question goes"):
        make(root, prompt="Question:")


def test_what_is_missing_is_told(root: Path, tmp_path: Path) -> None:
    (root / "testdev_balanced_questions.json").unlink()
    assert make(root).missing("testdev") == [f"{root / 'testdev_balanced_questions.json'} should hold the questions."]
    assert make(root).missing("val") == []
    (root / "train_balanced_questions.json").unlink()
    assert len(make(root, decoding="rank").missing("val")) == 1
    (root / "images" / "n101.jpg").unlink()
    with pytest.raises(UserError, match="lacks images: n101"):
        make(root).samples("val")
    with pytest.raises(UserError, match="Did you mean 'testdev'"):
        make(root).samples("testdv")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not JSON, or cut short"),
        ("[]", "is not a GQA file"),
        ("{}", "is not a GQA file"),
        ('{"1": {"question": "q", "answer": "a"}}', "question 1 lacks its imageId, question or answer"),
        ('{"1": {"question": "q", "answer": "a", "imageId": "../x"}}', "no file inside the data folder"),
    ],
)
def test_a_damaged_file_is_told(root: Path, content: str, sentence: str) -> None:
    (root / "val_balanced_questions.json").write_text(content)
    with pytest.raises(UserError, match=sentence):
        make(root).samples("val")
