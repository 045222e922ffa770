"""The mini VQAv2, in the layout of visualqa.org."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from vlbench.mini.questions import Answers, Question, ask
from vlbench.mini.render import render
from vlbench.mini.scenes import scene
from vlbench.mini.world import World
from vlbench.mini.writer import WORLD_VERSION, Writer


@dataclass(frozen=True)
class VqaSplit:
    """One split of VQAv2: how the official files name it, and how large the mini world makes it."""

    name: str
    subset: str
    folder: str  # of the images; those of test-dev are images of test
    images: int
    questions_per_image: int
    first_image_id: int
    annotated: bool = True


SPLITS = (
    VqaSplit("train", "train2014", "train2014", images=6000, questions_per_image=12, first_image_id=1),
    VqaSplit("val", "val2014", "val2014", images=2000, questions_per_image=2, first_image_id=10_001),
    VqaSplit("test", "test-dev2015", "test2015", 200, 2, first_image_id=20_001, annotated=False),
)
IMAGES = sum(split.images for split in SPLITS)


def write(writer: Writer) -> None:
    for split in SPLITS:
        write_split(writer, split)


def write_split(writer: Writer, split: VqaSplit) -> None:
    """Images, questions and, unless the split hides them, annotations."""
    writer.folder(split.folder)
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(split.images):
        picture = scene(split.name, index)
        image_id = split.first_image_id + index
        writer.image(f"{split.folder}/COCO_{split.folder}_{image_id:012d}.jpg", render(picture))
        for k, (question, answers) in enumerate(ask(picture, split.name, index, split.questions_per_image)):
            question_id = image_id * 1000 + k
            questions.append({"image_id": image_id, "question": question.text, "question_id": question_id})
            annotations.append(_annotation(image_id, question_id, question, answers))
    writer.text(f"v2_OpenEnded_mscoco_{split.subset}_questions.json", _json(split, questions=questions))
    if split.annotated:
        writer.text(f"v2_mscoco_{split.subset}_annotations.json", _json(split, annotations=annotations))


def _annotation(image_id: int, question_id: int, question: Question, answers: Answers) -> dict[str, Any]:
    return {
        "question_type": question.question_type,
        "multiple_choice_answer": question.truth,
        "answers": _answer_rows(answers),
        "image_id": image_id,
        "answer_type": question.answer_type,
        "question_id": question_id,
    }


@lru_cache(maxsize=64)  # four questions in five are unanimous, and share their rows with all of the same answer
def _answer_rows(answers: Answers) -> list[dict[str, str | int]]:
    return [
        {"answer": human.answer, "answer_confidence": human.confidence, "answer_id": number}
        for number, human in enumerate(answers, start=1)
    ]


def _json(split: VqaSplit, **rows: Sequence[dict[str, Any]]) -> str:
    header = {
        "info": {
            "description": "The mini world of vlbench in the format of VQA v2.0.",
            "url": "",
            "version": str(WORLD_VERSION),
            "year": 2024,
            "contributor": "vlbench",
            "date_created": "2024-05-27 00:00:00",
        },
        "task_type": "Open-Ended",
        "data_type": "mscoco",
        "license": {"url": "https://www.apache.org/licenses/LICENSE-2.0", "name": "Apache License 2.0"},
        "data_subtype": split.subset,
    }
    return json.dumps(header | rows, separators=(",", ":"))


WORLD = World("vqav2", IMAGES, write, "d2d05a79f0721d8d2e325f537a23fee754db4f2e29f0012a1a4bc9ecb1717c64")
