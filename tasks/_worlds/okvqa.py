"""The mini OK-VQA, in the layout of okvqa.allenai.org: ten answers a question, what was said and its stem."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlbench.mini.questions import Answers, Question, ask
from vlbench.mini.render import render
from vlbench.mini.scenes import scene
from vlbench.mini.world import World
from vlbench.mini.writer import WORLD_VERSION, Writer

STREAM = 11  # of its scenes


@dataclass(frozen=True)
class OkvqaSplit:
    """One split. subset: how the files and the image folder name it."""

    subset: str
    scenes: str
    images: int
    questions_per_image: int
    first_image_id: int


SPLITS = (
    OkvqaSplit("train2014", "train", images=600, questions_per_image=4, first_image_id=1),
    OkvqaSplit("val2014", "val", images=400, questions_per_image=2, first_image_id=10_001),
)
IMAGES = sum(split.images for split in SPLITS)


def write(writer: Writer) -> None:
    write_splits(writer, SPLITS)


def write_splits(writer: Writer, splits: tuple[OkvqaSplit, ...]) -> None:
    """Images, questions and annotations."""
    for split in splits:
        writer.folder(split.subset)
        questions: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(split.images):
            picture = scene(split.scenes, index, STREAM)
            image_id = split.first_image_id + index
            writer.image(f"{split.subset}/COCO_{split.subset}_{image_id:012d}.jpg", render(picture))
            for k, (question, answers) in enumerate(ask(picture, split.scenes, index, split.questions_per_image)):
                number = image_id * 10 + k
                questions.append({"image_id": image_id, "question": question.text, "question_id": number})
                annotations.append(_annotation(image_id, number, question, answers))
        writer.text(f"OpenEnded_mscoco_{split.subset}_questions.json", _json(split, questions=questions))
        writer.text(f"mscoco_{split.subset}_annotations.json", _json(split, annotations=annotations))


def _annotation(image_id: int, question_id: int, question: Question, answers: Answers) -> dict[str, Any]:
    rows = [
        {
            "answer_id": number, "raw_answer": human.answer, "answer_confidence": human.confidence,
            "answer": human.answer,
        }
        for number, human in enumerate(answers, start=1)
    ]  # fmt: skip
    return {
        "image_id": image_id, "answer_type": "other", "question_type": "other", "question_id": question_id,
        "answers": rows, "confidence": 5,
    }  # fmt: skip


def _json(split: OkvqaSplit, **rows: Sequence[dict[str, Any]]) -> str:
    about = "The mini world of vlbench in the format of OK-VQA."
    header = {
        "info": {"description": about, "version": str(WORLD_VERSION), "contributor": "vlbench"},
        "license": {"url": "https://www.apache.org/licenses/LICENSE-2.0", "name": "Apache License 2.0"},
        "task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": split.subset,
    }  # fmt: skip
    return json.dumps(header | rows, separators=(",", ":"))


WORLD = World("okvqa", IMAGES, write, "b9f90b9472e36fd79c9ab255a1e2668cc7a265ad825c4d3b63205ac12d37db17")
