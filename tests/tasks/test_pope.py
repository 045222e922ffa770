"""POPE: sums against the recorded ones of the reference evaluators (1e-12), the official lists counted, and how often
the loop encodes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from tests.evaluation.test_loop import SPEC, Grey
from tests.tasks.asked import POPE, draw, make, pope_here, recorded, recorded_here, totals
from vlbench.capability import Batch
from vlbench.errors import UserError
from vlbench.evaluation.loop import Evaluator
from vlbench.evaluation.predictions import Predictions
from vlbench.images.pipeline import ImageStore
from vlbench.model import Model
from vlbench.plugins.table import table
from vlbench.tensors.locate import locate

SUBSETS = ("random", "popular", "adversarial")


def write(root: Path, rows: dict[str, list[dict[str, Any]]]) -> Path:
    (root / "val2014").mkdir(exist_ok=True)
    for subset in SUBSETS:
        lines = "".join(json.dumps(row) + "\n" for row in rows.get(subset, []))
        (root / f"coco_pope_{subset}.json").write_text(lines)
    return root


def row(number: int, image: str = "1.jpg", label: str = "yes") -> dict[str, Any]:
    return {"question_id": number, "image": image, "text": "Is there a dog in the image?", "label": label}


@recorded_here
@pytest.mark.parametrize("rule", ["official", "lmms", "vlmevalkit"])
def test_sums_equal_the_evaluators(rule: str, tmp_path: Path) -> None:
    told = recorded("pope")
    rows = [row(i, r["image"], r["label"]) for i, r in enumerate(told["rows"])]
    task = make("pope", write(tmp_path, {"random": rows}), rule=rule)
    samples, said = task.samples("random"), [r["prediction"] for r in told["rows"]]
    found = totals(task, samples, said)
    theirs = told["lmms_eval" if rule == "lmms" else rule]
    if rule == "vlmevalkit":
        wanted = {"f1": theirs["Overall"], "accuracy": theirs["acc"], **{k: theirs[k] for k in ("precision", "recall")}}
    else:
        wanted = {k: 100 * theirs[k] for k in ("accuracy", "precision", "recall", "f1")}
    if rule == "official":
        wanted["yes"] = 100 * theirs["yes_ratio"]
    assert {k: found[k] for k in wanted} == pytest.approx(wanted, abs=1e-10)
    assert found["f1/random"] == found["f1"]
    assert "f1/popular" not in found
    table = np.array(task.scores(samples, [{"answer": text} for text in said]))
    assert task.corpus_metric(table.sum(0, keepdims=True))[0] == pytest.approx(found["f1"], abs=1e-12)


def test_the_mean_is_over_subsets(tmp_path: Path) -> None:
    """Two right of two; one of two, and no "yes" at all, where the original divides by zero."""
    rows = {s: [row(1), row(2, label="no")] for s in SUBSETS}
    task = make("pope", write(tmp_path, rows))
    samples = task.samples("test")
    assert [s.id for s in samples[:3]] == ["random/1", "random/2", "popular/1"]
    assert {s.cluster for s in samples} == {"1"}
    found = totals(task, samples, ["yes", "no", "yes", "Yes it is.", "no", "no"])
    assert found["f1/random"] == 100
    assert found["f1/popular"] == pytest.approx(200 / 3)
    assert found["f1/adversarial"] == 0
    assert found["f1"] == pytest.approx((100 + 200 / 3) / 3)
    assert found["accuracy"] == pytest.approx(200 / 3)
    assert found["unparsed"] == 0
    assert totals(task, samples, ["", "maybe", "dog", "yes", "no", "not"])["unparsed"] == 50


@pytest.mark.parametrize(
    ("line", "sentence"),
    [("{", "line 1, is no question"), (json.dumps({"text": "a"}), "line 1, is no question"),
     (json.dumps(row(1, label="perhaps")), "should be yes or no"), (json.dumps(row(1, image="../x.jpg")), "no file")],
)  # fmt: skip
def test_wrong_lines_are_named(line: str, sentence: str, tmp_path: Path) -> None:
    write(tmp_path, {})
    (tmp_path / "coco_pope_random.json").write_text(line + "\n")
    with pytest.raises(UserError, match=sentence):
        make("pope", tmp_path).samples("test")


def test_ids_twice_a_list_that_is_missing_and_labels_in_another_case(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="random/1 twice"):
        make("pope", write(tmp_path, {"random": [row(1), row(1)]})).samples("test")
    write(tmp_path, {"random": [row(1, label="Yes"), row(2, label=" NO ")]})
    assert [s.target for s in make("pope", tmp_path).samples("random")] == [{"yes": 1.0}, {"no": 1.0}]
    (tmp_path / "coco_pope_popular.json").unlink()
    assert len(make("pope", tmp_path).missing("test")) == 1


class Yes(Grey):
    """Says yes, and notes which images it encodes."""

    def __init__(self) -> None:
        super().__init__()
        self.card = self.card.__class__("yes", "", ("answer",), "", SPEC)

    def answer(self, states: Any, batch: Batch) -> list[dict[str, Any]]:
        return [{"answer": "yes"} for _ in batch.samples]


@pope_here
def test_the_official_lists_are_read_whole_and_an_image_is_encoded_once(tmp_path: Path) -> None:
    for subset in SUBSETS:
        shutil.copyfile(POPE / f"coco_pope_{subset}.json", tmp_path / f"coco_pope_{subset}.json")
    (tmp_path / "val2014").mkdir()
    task = make("pope", tmp_path)
    samples = task.samples("test")
    images = {s.images for s in samples}
    assert (len(samples), len(images), len({s.cluster for s in samples})) == (9000, 500, 500)
    assert sum("yes" in s.target for s in samples) == 4500
    for number, (path,) in enumerate(sorted(images)):
        draw(path, number)
    model = Yes()
    run = Evaluator(
        cast(Model, model), task, ImageStore(SPEC), settings={**task.settings("test"), "labelled": True}, batch_size=64
    )
    lines = run.run(samples, Predictions(tmp_path / "predictions.jsonl"))
    assert sum(model.decoded) == 500
    found = task.aggregate(samples, [line["score"] for line in lines])
    assert found["accuracy"] == 50
    assert found["f1"] == pytest.approx(200 / 3)
    assert found["yes"] == found["recall"] == 100


@pope_here
def test_real_photographs_through_the_real_reader_and_a_tiny_model(tmp_path: Path) -> None:
    """The official lines about the four photographs that are here: llava-mini, which never saw a photograph, answers
    each of the 72 questions, and its sums are those of its own answers, counted by hand."""
    photos = POPE.parent / "coco_val2017_mini" / "images"
    (tmp_path / "val2014").mkdir()
    for subset in SUBSETS:
        shutil.copy(POPE / f"coco_pope_{subset}_local.json", tmp_path / f"coco_pope_{subset}.json")
        for line in (POPE / f"coco_pope_{subset}_local.json").read_text().splitlines():
            name = json.loads(line)["image"]
            shutil.copy(photos / name.removeprefix("COCO_val2014_"), tmp_path / "val2014" / name)
    task = make("pope", tmp_path)
    samples = task.samples("test")
    cls = table("models").get("llava-mini").load()
    card = next(card for card in cls.cards if card.name == "llava-mini")
    model = cls.open(card, locate(card.checkpoint, card.revision, {}))
    settings = {**task.settings("test"), "labelled": True, "max_length": 4}
    run = Evaluator(model, task, ImageStore(card.image), settings=settings, batch_size=32)
    lines = run.run(samples, Predictions(tmp_path / "predictions.jsonl"))
    assert (len(samples), len({s.images for s in samples})) == (72, 4)
    assert all(line["status"] == "ok" for line in lines)
    found = task.aggregate(samples, [line["score"] for line in lines])
    said = [not {"no", "not", "No"} & set(line["prediction"]["answer"].split()) for line in lines]
    right = [yes is ("yes" in s.target) for yes, s in zip(said, samples, strict=True)]
    assert found["accuracy"] == pytest.approx(100 * sum(right) / 72)
    assert found["yes"] == pytest.approx(100 * sum(said) / 72)
