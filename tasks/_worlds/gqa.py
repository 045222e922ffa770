"""The mini GQA, in the layout of its balanced questions: train and testdev."""

import json
from dataclasses import dataclass
from typing import Any

from vlbench.mini.questions import ask
from vlbench.mini.render import render
from vlbench.mini.scenes import scene
from vlbench.mini.world import World
from vlbench.mini.writer import Writer

STREAM = 10  # of its scenes


@dataclass(frozen=True)
class GqaSplit:
    """One file of questions. scenes: the split its scenes are of; first: the number of its first image."""

    name: str
    scenes: str
    images: int
    questions_per_image: int
    first: int


SPLITS = (
    GqaSplit("train", "train", images=600, questions_per_image=6, first=1),
    GqaSplit("val", "test", images=100, questions_per_image=3, first=10_001),
    GqaSplit("testdev", "val", images=400, questions_per_image=3, first=20_001),
)
IMAGES = sum(split.images for split in SPLITS)
# Leading words -> GQA's structural type; it has no counting, which stands with the open questions here.
STRUCTURE = {"is there a": "verify", "is the": "verify", "are there more": "compare"}


def write(writer: Writer) -> None:
    write_splits(writer, SPLITS)


def write_splits(writer: Writer, splits: tuple[GqaSplit, ...]) -> None:
    """Images, and one file of questions a split."""
    writer.folder("images")
    for split in splits:
        rows: dict[str, Any] = {}
        for index in range(split.images):
            picture = scene(split.scenes, index, STREAM)
            image_id = str(split.first + index)
            writer.image(f"images/{image_id}.jpg", render(picture))
            asked = ask(picture, split.scenes, index, split.questions_per_image)
            for k, (question, _) in enumerate(asked):
                rows[f"{image_id}{k:02d}"] = _row(image_id, question)
        writer.text(f"{split.name}_balanced_questions.json", json.dumps(rows, separators=(",", ":")))


def _row(image_id: str, question: Any) -> dict[str, Any]:
    kind = STRUCTURE.get(question.question_type, "query")
    return {
        "semantic": [], "entailed": [], "equivalent": [], "question": question.text, "imageId": image_id,
        "isBalanced": True, "groups": {"global": None, "local": question.question_type}, "answer": question.truth,
        "semanticStr": "", "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
        "types": {"detailed": question.question_type, "semantic": "obj", "structural": kind},
        "fullAnswer": question.truth,
    }  # fmt: skip


WORLD = World("gqa", IMAGES, write, "d81b0f8d9b45d2f3a8ad0916f1aa19650da679bb08be36be220ffc780d08a891")
