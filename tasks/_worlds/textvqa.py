"""The mini TextVQA: boards with words on them, ten answers a question, in the layout of TextVQA 0.5.1."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlbench.mini.letters import WORDS, Board, boards, render_boards
from vlbench.mini.scenes import SPLITS as SCENES
from vlbench.mini.scenes import Draws
from vlbench.mini.world import World
from vlbench.mini.writer import Writer

STREAM = 16  # of its scenes
ANNOTATORS = 10
DISSENT = 15  # percent of the questions of which some annotators read another word


@dataclass(frozen=True)
class TextSplit:
    name: str
    folder: str
    scenes: str
    images: int
    questions: int  # an image
    first: int  # number of its first image
    answered: bool = True


SPLITS = (
    TextSplit("train", "train_images", "train", 2500, 3, 1),
    TextSplit("val", "train_images", "val", 500, 2, 100_001),
    TextSplit("test", "test_images", "test", 50, 2, 200_001, answered=False),
)
IMAGES = sum(split.images for split in SPLITS)


def write(writer: Writer) -> None:
    write_splits(writer, SPLITS)


def write_splits(writer: Writer, splits: tuple[TextSplit, ...]) -> None:
    """Images and questions. The words that Rosetta's OCR would read are written beside them."""
    for split in splits:
        writer.folder(split.folder)
        rows: list[dict[str, Any]] = []
        words: list[dict[str, Any]] = []
        for index in range(split.images):
            shown, ground = boards(split.scenes, index, STREAM)
            image = f"{split.first + index:016x}"
            writer.image(f"{split.folder}/{image}.jpg", render_boards(shown, ground))
            draws = Draws(STREAM, SCENES[split.scenes], index, 1)
            words.append({"image_id": image, "ocr_tokens": [board.word for board in shown]})
            for text, truth in _questions(shown, draws, split.questions):
                row = {"question": text, "image_id": image, "question_id": len(rows) + split.first * 10}
                answers = {"answers": _answers(truth, draws)} if split.answered else {}
                rows.append({**row, "image_classes": ["Sign"], "set_name": split.name, **answers})
        writer.text(f"TextVQA_0.5.1_{split.name}.json", _json(split, rows))
        writer.text(f"TextVQA_Rosetta_OCR_v0.2_{split.name}.json", _json(split, words))


def _questions(shown: Sequence[Board], draws: Draws, count: int) -> list[tuple[str, str]]:
    """Different questions with what they ask for. Boards stand in different rows, so that one is the highest."""
    highest, lowest = min(shown, key=lambda board: board.row), max(shown, key=lambda board: board.row)
    pool = [
        *((f"what is written on the {board.color} sign?", board.word) for board in shown),
        *((f"what does the {board.color} sign say?", board.word) for board in shown),
        *((f"what is the first letter on the {board.color} sign?", board.word[0]) for board in shown),
        ("what does the highest sign say?", highest.word),
        ("what does the lowest sign say?", lowest.word),
    ]
    return [pool.pop(draws.below(len(pool))) for _ in range(count)]


def _answers(truth: str, draws: Draws) -> list[str]:
    """Ten readings in small letters, at least seven of them right."""
    answers = [truth.lower()] * ANNOTATORS
    if draws.chance(DISSENT) and truth in WORDS:
        for _ in range(draws.between(1, 3)):
            answers[draws.below(ANNOTATORS)] = draws.pick(WORDS).lower()
    return answers


def _json(split: TextSplit, rows: Sequence[dict[str, Any]]) -> str:
    head = {"dataset_type": split.name, "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    return json.dumps({**head, "data": rows}, separators=(",", ":"))


WORLD = World("textvqa", IMAGES, write, "44c046b8f70c518c11fd452627fc2dc783ef56fc3b3c4e5d09ce26bd1d56f5c5")
