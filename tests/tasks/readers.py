"""The smallest data folder of every task that reads annotations, and where its ids and questions stand in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.tasks.asked import make

Place = tuple[str | int, ...]
COCO = "COCO_val2014_000000000007.jpg"


@dataclass(frozen=True)
class Reader:
    """files: name -> JSON. lines: a list has one object a line. ids, texts: where they stand,
    as (file, key, key ...). options: of the task."""

    task: str
    split: str
    files: Mapping[str, Any]
    pictures: tuple[str, ...]
    ids: tuple[Place, ...]
    texts: tuple[Place, ...]
    lines: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def write(self, root: Path, change: Callable[[dict[str, Any]], Any] | None = None) -> Any:
        """The task on a folder of these files. change: alters a copy of them first."""
        files = json.loads(json.dumps(self.files))
        if change is not None:
            change(files)
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            rows = content if self.lines and isinstance(content, list) else None
            text = "\n".join(map(json.dumps, rows)) if rows is not None else json.dumps(content)
            (root / name).write_text(text)
        for name in self.pictures:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        return make(self.task, root, **self.options)


def put(files: dict[str, Any], place: Place, value: Any) -> None:
    """Write a value where `place` says."""
    at: Any = files
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value


def _vqa(task: str) -> Reader:
    stem = "v2_OpenEnded_mscoco_val2014" if task == "vqav2" else "OpenEnded_mscoco_val2014"
    asked = f"{stem}_questions.json"
    answered = "v2_mscoco_val2014_annotations.json" if task == "vqav2" else "mscoco_val2014_annotations.json"
    answers = [{"answer": "yes", "answer_id": i} for i in range(10)]
    label = {"question_id": 1, "image_id": 7, "answers": answers, "answer_type": "other",
             "multiple_choice_answer": "yes"}  # fmt: skip
    files = {
        asked: {"questions": [{"question_id": 1, "image_id": 7, "question": "Is it?"}]},
        answered: {"annotations": [label]},
    }
    row = (asked, "questions", 0)
    ids: tuple[Place, ...] = ((*row, "question_id"), (*row, "image_id"), (answered, "annotations", 0, "question_id"))
    ids = (*ids, (answered, "annotations", 0, "image_id"))
    pictures, texts = (f"val2014/{COCO}",), ((*row, "question"),)
    return Reader(task, "val", files, pictures, ids, texts, options={"decoding": "generate"})


def _karpathy() -> Reader:
    file = "dataset_coco.json"
    sentence = {"raw": "A cat.", "sentid": 3, "tokens": ["a", "cat"]}
    image = {"filepath": "val2014", "filename": COCO, "cocoid": 7, "split": "test", "sentences": [sentence]}
    row = (file, "images", 0)
    pictures = (f"val2014/{COCO}",)
    return Reader(
        "coco_retrieval", "test", {file: {"images": [image]}}, pictures,
        ((*row, "cocoid"), (*row, "sentences", 0, "sentid")), ((*row, "sentences", 0, "raw"), (*row, "filename")),
    )  # fmt: skip


def _blip() -> Reader:
    file = "coco_karpathy_test.json"
    rows = [{"image": f"val2014/{COCO}", "caption": ["A cat.", "A dog."]}]
    texts: tuple[Place, ...] = ((file, 0, "image"), (file, 0, "caption", 1))
    return Reader("coco_caption", "test", {file: rows}, (f"val2014/{COCO}",), (), texts)


def _nocaps() -> Reader:
    file = "nocaps_val_4500_captions.json"
    content = {
        "images": [{"id": 0, "file_name": "a.jpg", "domain": "in-domain"}],
        "annotations": [{"id": 5, "image_id": 0, "caption": "A cat."}],
    }
    ids: tuple[Place, ...] = ((file, "images", 0, "id"), (file, "annotations", 0, "id"))
    ids = (*ids, (file, "annotations", 0, "image_id"))
    texts: tuple[Place, ...] = ((file, "annotations", 0, "caption"), (file, "images", 0, "file_name"))
    return Reader("nocaps", "val", {file: content}, ("validation/a.jpg",), ids, texts)


def _nlvr2(official: bool) -> Reader:
    pictures = tuple(f"images/test1/test1-0-0-img{side}.png" for side in (0, 1))
    if official:
        row = {"identifier": "test1-0-0-0", "sentence": "One.", "label": "True"}
        texts: tuple[Place, ...] = (("data/test1.json", 0, "identifier"), ("data/test1.json", 0, "sentence"))
        return Reader("nlvr2", "test1", {"data/test1.json": [row]}, pictures, (), texts, lines=True)
    row = {"images": [f"test1/{Path(name).name}" for name in pictures], "sentence": "One.", "label": "True"}
    file = "annotation/nlvr_test.json"
    return Reader("nlvr2", "test1", {file: [row]}, pictures, (), ((file, 0, "sentence"), (file, 0, "images", 0)))


def _gqa() -> Reader:
    file = "testdev_balanced_questions.json"
    row = {"imageId": "n1", "question": "Is it?", "answer": "yes", "types": {"structural": "verify"}}
    places: tuple[Place, ...] = tuple((file, "q1", key) for key in ("imageId", "question", "answer"))
    return Reader("gqa", "testdev", {file: {"q1": row}}, ("images/n1.jpg",), (), places)


def _pope() -> Reader:
    rows = [{"question_id": 1, "image": COCO, "text": "Is there a cat?", "label": "yes"}]
    files = {f"coco_pope_{name}.json": rows for name in ("random", "popular", "adversarial")}
    file = "coco_pope_random.json"
    texts: tuple[Place, ...] = tuple((file, 0, key) for key in ("image", "text", "label"))
    return Reader("pope", "test", files, (f"val2014/{COCO}",), ((file, 0, "question_id"),), texts, lines=True)


def _scienceqa() -> Reader:
    problem = {"question": "Which?", "choices": ["a", "b"], "answer": 1, "hint": "", "image": "image.png"}
    files = {"problems.json": {"1": problem}, "pid_splits.json": {"test": ["1"]}}
    row = ("problems.json", "1")
    ids: tuple[Place, ...] = ((*row, "answer"), ("pid_splits.json", "test", 0))
    texts: tuple[Place, ...] = ((*row, "question"), (*row, "choices", 0))
    return Reader("scienceqa", "test", files, ("images/test/1/image.png",), ids, texts)


def _textvqa() -> Reader:
    file = "TextVQA_0.5.1_val.json"
    row = {"question_id": 1, "image_id": "abc", "question": "What?", "answers": ["x"] * 10}
    texts: tuple[Place, ...] = tuple((file, "data", 0, *key) for key in (("image_id",), ("question",), ("answers", 3)))
    ids: tuple[Place, ...] = ((file, "data", 0, "question_id"),)
    return Reader("textvqa", "val", {file: {"data": [row]}}, ("train_images/abc.jpg",), ids, texts)


def _docvqa() -> Reader:
    file = "val_v1.0.json"
    row = {"questionId": 1, "docId": 9, "image": "documents/p.png", "question": "What?", "answers": ["x"]}
    texts: tuple[Place, ...] = tuple((file, "data", 0, *key) for key in (("image",), ("question",), ("answers", 0)))
    ids: tuple[Place, ...] = ((file, "data", 0, "questionId"), (file, "data", 0, "docId"))
    return Reader("docvqa", "val", {file: {"data": [row]}}, ("documents/p.png",), ids, texts)


def _chartqa() -> Reader:
    rows = [{"imgname": "c.png", "query": "How many?", "label": "3"}]
    files = {f"test/test_{half}.json": rows for half in ("human", "augmented")}
    texts: tuple[Place, ...] = tuple(("test/test_human.json", 0, key) for key in ("imgname", "query"))
    return Reader("chartqa", "test", files, ("test/png/c.png",), (), texts)


def _table() -> Reader:
    file = "unpacked/mmstar-val.json"
    row = {"index": "1", "question": "Which?", "A": "x", "B": "y", "answer": "A", "images": ["unpacked/images/a.png"]}
    content = {"sources": [], "rows": [row]}
    at = (file, "rows", 0)
    texts: tuple[Place, ...] = ((*at, "question"), (*at, "images", 0))
    return Reader("mmstar", "val", {file: content}, ("unpacked/images/a.png",), ((*at, "index"),), texts)


READERS = {
    "vqav2": _vqa("vqav2"), "okvqa": _vqa("okvqa"), "karpathy": _karpathy(), "blip": _blip(), "nocaps": _nocaps(),
    "nlvr2": _nlvr2(official=True), "nlvr2-blip": _nlvr2(official=False), "gqa": _gqa(), "pope": _pope(),
    "scienceqa": _scienceqa(), "textvqa": _textvqa(), "docvqa": _docvqa(), "chartqa": _chartqa(), "table": _table(),
}  # fmt: skip
