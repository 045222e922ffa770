"""The files of VQA (visualqa.org), whose layout OK-VQA shares: questions, ten human answers each, COCO's images."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from vlbench.errors import UserError

from ._files import read_json, refuse, text_of, whole_number

# The id is the last number.
IMAGE_NAME = re.compile(r"(?:[^.].*\D)?(\d+)\.(?:jpe?g|png|webp|bmp|tiff?|gif)", re.IGNORECASE)

T = TypeVar("T")


class Label(NamedTuple):
    """What the humans said. kind: "yes/no", "number" or "other". majority: `multiple_choice_answer`."""

    answers: tuple[str, ...]
    kind: str
    majority: str
    image_id: int


def by_question(path: Path, key: str, parse: Callable[[dict[str, Any]], T]) -> dict[str, T]:
    """Question id -> parsed row of the list `key` in an official file, in the file's order."""
    content = read_json(path, _fold_answer)
    rows = content.get(key) if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise UserError(f"{path} is not a VQA file: it has no list {key!r}.")
    values: dict[str, T] = {}
    twice: set[str] = set()
    for number, row in enumerate(rows):
        try:
            question_id, value = str(whole_number(row["question_id"])), parse(row)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: entry {number} of {key!r} is not valid: {error!r}.") from None
        if question_id in values:
            twice.add(question_id)
        values[question_id] = value
    refuse(twice, f"{path} has question ids twice")
    return values


def question(row: dict[str, Any]) -> tuple[int, str]:
    """(image id, text) of a row of `questions`."""
    return whole_number(row["image_id"]), text_of(row["question"])


def label(row: dict[str, Any]) -> Label:
    """Of a row of `annotations`."""
    answers = tuple(map(sys.intern, row["answers"]))
    if len(answers) < 2:
        raise ValueError("it needs the answers of two humans or more")
    kind, majority = row.get("answer_type", ""), row.get("multiple_choice_answer", "")
    return Label(answers, sys.intern(kind), sys.intern(majority), whole_number(row["image_id"]))


def refuse_other_images(
    questions: Mapping[str, tuple[int, str]], labels: Mapping[str, Label], files: tuple[Path, Path]
) -> None:
    """Raise UserError where the answers to a question are of another image than the question is: the files are not of
    one release, and every score would be of the wrong question. files: of the questions and of the answers."""
    asked, answered = files
    odd = (i for i, (image, _) in questions.items() if i in labels and labels[i].image_id != image)
    refuse(odd, f"{answered} has answers to questions of other images than {asked.name} says")


def target(answers: tuple[str, ...]) -> dict[str, float]:
    """Answer -> share of the humans who gave it: the weights of BLIP's loss."""
    return {answer: count / len(answers) for answer, count in Counter(answers).items()}


def images(folder: Path) -> dict[int, Path]:
    """Image id -> file, from one listing: COCO_val2014_000000000042.jpg and 42.png are both image 42."""
    try:
        paths = list(folder.iterdir())
    except OSError as error:
        raise UserError(f"The image folder {folder} cannot be read: {error.strerror}.") from None
    images: dict[int, Path] = {}
    for path in paths:
        if match := IMAGE_NAME.fullmatch(path.name):
            twin = images.setdefault(int(match[1]), path)
            if twin is not path:
                raise UserError(f"{folder} has image {match[1]} twice: {twin.name} and {path.name}.")
    return images


def read_candidates(path: Path) -> list[str]:
    """A JSON list of candidate answers."""
    answers = read_json(path)
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise UserError(f'{path} should be a JSON list of candidate answers, as in ["yes", "no"].')
    return answers


def _fold_answer(row: dict[str, Any]) -> Any:
    """{"answer": text, "answer_id": ...} -> text, at once: train has 4.4 million of these records."""
    return row["answer"] if "answer" in row and "question_id" not in row else row
