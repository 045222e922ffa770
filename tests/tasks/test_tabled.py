"""Benchmarks that come as their own release or as a table. Oracle: the same questions written as the release, in
VLMEvalKit's TSV and in lmms-eval's parquet become the same texts, targets, candidates and scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.tasks.asked import make
from tests.tasks.tables import cell, picture, write_parquet, write_tsv
from vlbench.errors import UserError

Rows = list[dict[str, Any]]
ANSWERS = ["a", "a", "b"]
# Task -> (split, the TSV's name, the parquet's, rows of VLMEvalKit, rows of lmms-eval). Images are added below.
TABLES: dict[str, tuple[str, str, str, Rows, Rows]] = {
    "pope": (
        "test", "POPE.tsv", "data/test-00000-of-00001.parquet",
        [{"index": 0, "category": "random", "question": "Is there a cat? Please answer yes or no.", "answer": "Yes"},
         {"index": 1, "category": "adversarial", "question": "Is there a dog?", "answer": "no"}],
        [{"id": "0", "question_id": "1", "category": "random", "question": "Is there a cat?", "answer": "yes"},
         {"id": "1", "question_id": "1", "category": "adversarial", "question": "Is there a dog?", "answer": "no"}],
    ),
    "mme": (
        "test", "MME.tsv", "data/test-0.parquet",
        [{"index": 0, "category": "count", "question": "Two? Please answer yes or no.", "answer": "Yes"},
         {"index": 1, "category": "count", "question": "Three? Please answer yes or no.", "answer": "No"}],
        [{"question_id": "count/1.jpg", "category": "count", "question": "Two? Please answer yes or no.",
          "answer": "Yes"},
         {"question_id": "count/1.jpg", "category": "count", "question": "Three? Please answer yes or no.",
          "answer": "No"}],
    ),
    "scienceqa": (
        "test", "ScienceQA_TEST.tsv", "ScienceQA-IMG/test-0.parquet",
        [{"index": 0, "question": "Which?", "hint": "Look.", "A": "x", "B": "y", "answer": "B",
          "category": "natural science"},
         {"index": 1, "question": "What?", "hint": "", "A": "x", "B": "y", "C": "z", "answer": "C",
          "category": "social science"}],
        [{"question": "Which?", "hint": "Look.", "choices": ["x", "y"], "answer": 1, "subject": "natural science"},
         {"question": "What?", "hint": "", "choices": ["x", "y", "z"], "answer": 2, "subject": "social science"}],
    ),
    "textvqa": (
        "val", "TextVQA_VAL.tsv", "data/validation-0.parquet",
        [{"index": 0, "question": "what is it?", "answer": repr(ANSWERS)}],
        [{"question_id": 0, "image_id": "f", "question": "what is it?", "answers": ANSWERS, "ocr_tokens": ["AB"]}],
    ),
    "chartqa": (
        "test", "ChartQA_TEST.tsv", "data/test-0.parquet",
        [{"index": 0, "question": "How much?", "answer": "12", "split": "test_human"},
         {"index": 1, "question": "Where?", "answer": "['There']", "split": "test_augmented"}],
        [{"question": "How much?", "answer": "12", "type": "human_test"},
         {"question": "Where?", "answer": "There", "type": "augmented_test"}],
    ),
    "docvqa": (
        "val", "DocVQA_VAL.tsv", "DocVQA/validation-0.parquet",
        [{"index": 7, "question": "Who?", "answer": "['Ann', 'ann']"}],
        [{"questionId": "7", "question": "Who?", "answers": ["Ann", "ann"], "docId": 3}],
    ),
}  # fmt: skip


def opened(name: str, root: Path, split: str, **options: Any) -> Any:
    task = make(name, root, **options)
    assert f"vlbench data prepare task={name}" in task.missing(split)[0]
    task.prepare(split, lambda line: None)
    assert task.missing(split) == []
    return task


def read(task: Any, split: str) -> list[tuple[Any, ...]]:
    """What must be alike, and how a good and a bad answer score."""
    samples = task.samples(split)
    assert all(sample.images[0].is_file() for sample in samples)
    said = ["yes", "Yes", "B", "a", "12", "Ann"]
    scores = [task.scores(samples, [{"answer": text}] * len(samples)) for text in said]
    return [(s.text, s.target, s.candidates, *column) for s, *column in zip(samples, *scores, strict=True)]


@pytest.mark.parametrize("name", TABLES)
def test_both_tables_are_the_same_benchmark(name: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    split, tsv, parquet, theirs, lmms = TABLES[name]
    (tmp_path / "tsv").mkdir()
    write_tsv(tmp_path / "tsv" / tsv, [{**row, "image": cell(1)} for row in theirs])
    write_parquet(tmp_path / "parquet" / parquet, [{**row, "image": {"bytes": picture(1), "path": ""}} for row in lmms])
    first, second = opened(name, tmp_path / "tsv", split), opened(name, tmp_path / "parquet", split)
    assert read(first, split) == read(second, split)
    assert len(first.samples(split)) == len(theirs)
    assert len({sample.cluster for sample in first.samples(split)}) >= 1
    groups = first.groups(first.samples(split))
    assert groups == {
        a.id: second.groups(second.samples(split)).get(b.id)
        for a, b in zip(first.samples(split), second.samples(split), strict=True)
        if a.id in groups
    }


def test_the_release_comes_before_a_table(tmp_path: Path) -> None:
    """POPE: the same two questions, as lists and as a table with another text; the lists are read."""
    rows = [{"question_id": 1, "image": "1.jpg", "text": "Is there a cat?", "label": "yes"}]
    (tmp_path / "val2014").mkdir()
    for subset in ("random", "popular", "adversarial"):
        (tmp_path / f"coco_pope_{subset}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_tsv(tmp_path / "POPE.tsv", [{**TABLES["pope"][3][0], "image": cell(1)}])
    task = make("pope", tmp_path)
    assert task.missing("test") == []
    assert len(task.samples("test")) == 3
    (tmp_path / "coco_pope_random.json").unlink()
    assert "data prepare task=pope" in make("pope", tmp_path).missing("test")[0]


def test_ocr_words_of_a_table(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    row = {**TABLES["textvqa"][4][0], "image": {"bytes": picture(1), "path": ""}}
    write_parquet(tmp_path / "data" / "validation-0.parquet", [row])
    task = opened("textvqa", tmp_path, "val", ocr=True, rule="lmms")
    assert task.samples("val")[0].text == "What is it?\nReference OCR token: AB"


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("pope", {"category": "easy"}, "should be random, popular, adversarial"),
        ("pope", {"answer": "perhaps"}, "should be yes or no"),
        ("mme", {"category": "colour"}, "is no subtask of MME"),
        ("chartqa", {"split": "test"}, "says neither human nor augmented"),
        ("scienceqa", {"answer": "F"}, "answer 'F', and the options A, B"),
        ("docvqa", {"question": ""}, "has no question"),
        ("textvqa", {"image": ""}, "has 0 images"),
        ("docvqa", {"answer": "[__import__('os')]"}, "is no list of plain values"),
    ],
)
def test_rows_that_are_none(name: str, change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    split, tsv, _, rows, _ = TABLES[name]
    table: Sequence[dict[str, Any]] = [{**rows[0], "image": cell(1), **change}]
    write_tsv(tmp_path / tsv, table)
    with pytest.raises(UserError, match=sentence.replace("(", r"\(")):
        opened(name, tmp_path, split).samples(split)


SEED = {
    "question_type": {"Scene Understanding": 1, "Action Recognition": 10},
    "questions": [
        {"answer": "B", "choice_a": "x", "choice_b": "y", "choice_c": "z", "choice_d": "w", "data_id": "1_2",
         "data_type": "image", "question": "Which?", "question_id": "101", "question_type_id": 1},
        {"answer": "A", "choice_a": "x", "choice_b": "y", "choice_c": "z", "choice_d": "w", "data_id": "v.mp4",
         "data_type": "video", "question": "Why?", "question_id": "102", "question_type_id": 10},
    ],
}  # fmt: skip


def test_seed_benchs_own_file(tmp_path: Path) -> None:
    """Questions about images alone, the same as the table's."""
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "SEED-Bench.json").write_text(json.dumps(SEED))
    task = make("seedbench", tmp_path / "json")
    assert "should hold the images" in task.missing("test")[0]
    (tmp_path / "json" / "SEED-Bench-image").mkdir()
    (tmp_path / "json" / "SEED-Bench-image" / "1_2").write_bytes(picture(1))
    assert task.missing("test") == []
    (sample,) = task.samples("test")
    row = SEED["questions"][0]  # type: ignore[index]
    options = {letter.upper(): row[f"choice_{letter}"] for letter in "abcd"}
    (tmp_path / "tsv").mkdir()
    shared = {"index": 101, "question": "Which?", "answer": "B", "category": "Scene Understanding", "image": cell(1)}
    write_tsv(tmp_path / "tsv" / "SEEDBench_IMG.tsv", [{**shared, **options}])
    other = opened("seedbench", tmp_path / "tsv", "test")
    (same,) = other.samples("test")
    assert (sample.id, sample.text, sample.target, sample.candidates) == (
        same.id, same.text, same.target, same.candidates,
    )  # fmt: skip
    assert task.score(sample, {"answer": "b"}) == [1.0, 0.0]
    assert task.groups([sample]) == other.groups([same]) == {"101": "Scene Understanding"}
    broken = {**SEED, "question_type": {}}
    (tmp_path / "json" / "SEED-Bench.json").write_text(json.dumps(broken))
    with pytest.raises(UserError, match="is not SEED-Bench's file of questions"):
        make("seedbench", tmp_path / "json").samples("test")
