"""OK-VQA's reader on its official layout, made here as the published files are, and its accuracy by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlbench.errors import UserError
from vlbench.plugins.table import table
from vlbench.task import held_out, refuse_report_ids

IMAGES = {"train2014": range(1, 31), "val2014": range(101, 104)}


def annotation(image: int, k: int) -> dict[str, Any]:
    """Five humans, whose answers count twice, as in the published files; the stem beside what was said."""
    said = [("racing", "race")] * 6 + [("motocross", "motocross")] * 2 + [("riding", "ride")] * 2
    return {
        "image_id": image, "answer_type": "other", "question_type": "four", "question_id": image * 10 + k,
        "answers": [
            {"answer_id": n, "raw_answer": raw, "answer_confidence": "yes", "answer": stem}
            for n, (raw, stem) in enumerate(said, 1)
        ],
        "confidence": 3,
    }  # fmt: skip


def test_another_year_of_coco_is_told(root: Path) -> None:
    """Oracle: the sentence names the folder that is there and its year, and nothing else is missing."""
    (root / "val2014").rename(root / "val2017")
    (sentence,) = make(root).missing("val")
    assert "val2014 should hold the images of val: the val2017 that is there is COCO 2017" in sentence


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for subset, numbers in IMAGES.items():
        (tmp_path / subset).mkdir()
        for n in numbers:
            (tmp_path / subset / f"COCO_{subset}_{n:012d}.jpg").touch()
        rows = [annotation(n, k) for n in numbers for k in range(2)]
        questions = [
            {"image_id": r["image_id"], "question": "What sport?", "question_id": r["question_id"]} for r in rows
        ]
        (tmp_path / f"mscoco_{subset}_annotations.json").write_text(json.dumps({"annotations": rows}))
        (tmp_path / f"OpenEnded_mscoco_{subset}_questions.json").write_text(json.dumps({"questions": questions}))
    return tmp_path


def make(root: Path, **options: Any) -> Any:
    cls = table("tasks").get("okvqa").load()
    return cls(root, cls.Options(**options))


def test_samples(root: Path) -> None:
    task = make(root)
    found = {split: task.samples(split) for split in ("train", "select", "val")}
    assert [s.id for s in found["val"]] == [str(n * 10 + k) for n in IMAGES["val2014"] for k in range(2)]
    one = found["val"][0]
    assert (one.text, one.cluster) == ("What sport?", "101")
    assert one.target == pytest.approx({"race": 0.6, "motocross": 0.2, "ride": 0.2})
    assert {s.cluster for s in found["select"]} == {str(n) for n in IMAGES["train2014"] if held_out(str(n), 10)}
    assert len(found["train"]) + len(found["select"]) == 60
    refuse_report_ids(task, found["train"])
    assert task.missing("val") == task.missing("train") == []


@pytest.mark.parametrize("folder", ["annotations", "okvqa"])
def test_files_may_lie_in_a_folder(root: Path, folder: str) -> None:
    (root / folder).mkdir()
    for file in root.glob("*.json"):
        file.rename(root / folder / file.name)
    (root / "images").mkdir()
    (root / "val2014").rename(root / "images" / "val2014")
    assert len(make(root).samples("val")) == 6


@pytest.mark.parametrize(
    ("said", "score"), [("race", 1.0), ("Race.", 1.0), ("motocross", 0.6), ("racing", 0.0), ("tennis", 0.0)]
)
def test_accuracy(root: Path, said: str, score: float) -> None:
    """By hand: of ten humans two match, so that eight leave-one-out sets give 2/3 and two give 1/3."""
    task = make(root)
    sample = task.samples("val")[0]
    assert task.score(sample, {"answer": said}) == pytest.approx(score)
    assert task.aggregate([sample, sample], [score, 1.0]) == {"accuracy": pytest.approx(50 * (score + 1))}


def test_candidates_are_the_answers_of_train(root: Path) -> None:
    own = make(root, decoding="rank").settings("val")
    assert own["candidates"] == ["motocross", "race", "ride"]
    assert make(root).settings("val")["candidates"] == []


def test_what_is_missing_is_told(root: Path) -> None:
    (root / "mscoco_val2014_annotations.json").unlink()
    (told,) = make(root).missing("val")
    assert told == f"{root / 'mscoco_val2014_annotations.json'} should hold the answers of val."
    (root / "mscoco_train2014_annotations.json").unlink()
    assert len(make(root, decoding="rank").missing("val")) == 2
    with pytest.raises(UserError, match="Did you mean 'val'"):
        make(root).samples("vall")


def test_files_of_different_questions_are_told(root: Path) -> None:
    path = root / "mscoco_val2014_annotations.json"
    rows = json.loads(path.read_text())["annotations"]
    path.write_text(json.dumps({"annotations": rows[1:]}))
    with pytest.raises(UserError, match="lacks answers to questions: 1010"):
        make(root).samples("val")
    path.write_text(json.dumps({"annotations": [*rows, {**rows[0], "question_id": 7}]}))
    with pytest.raises(UserError, match="lacks questions that have answers: 7"):
        make(root).samples("val")
