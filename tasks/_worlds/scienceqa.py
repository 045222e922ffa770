"""The mini ScienceQA: problems.json and pid_splits.json, two to five options, hints, a picture for each problem."""

import json
from dataclasses import dataclass
from typing import Any

from vlbench.mini.choices import Choice, choices
from vlbench.mini.render import render
from vlbench.mini.scenes import SPLITS as SCENES
from vlbench.mini.scenes import Draws, Scene, scene
from vlbench.mini.world import World
from vlbench.mini.writer import Writer

STREAM = 15  # of its scenes
SUBJECTS = {
    "cp": "natural science", "fp-s": "natural science", "fp-c": "natural science", "ar": "language science",
    "rr": "social science", "lr": "language science",
}  # fmt: skip
HINTED = 30  # percent of the problems without a rule whose hint says what is seen anyway


@dataclass(frozen=True)
class SqaSplit:
    """Problems of one split; `folder` holds its pictures."""

    name: str
    folder: str
    scenes: str
    problems: int
    first: int  # number of the first problem; scenes have the same numbers


SPLITS = (
    SqaSplit("train", "train", "train", 3000, 1),
    SqaSplit("minival", "val", "test", 200, 10_001),
    SqaSplit("test", "test", "val", 800, 20_001),
)
SAME = {"val": "minival", "minitest": "test", "minitrain": "train"}  # the release's other splits, here the same
IMAGES = sum(split.problems for split in SPLITS)


def write(writer: Writer) -> None:
    write_splits(writer, SPLITS)


def write_splits(writer: Writer, splits: tuple[SqaSplit, ...]) -> None:
    """Pictures, problems and the lists of splits."""
    problems: dict[str, Any] = {}
    ids: dict[str, list[str]] = {}
    for split in splits:
        ids[split.name] = []
        for number in range(split.first, split.first + split.problems):
            picture = scene(split.scenes, number, STREAM)
            draws = Draws(STREAM, SCENES[split.scenes], number, 1)
            writer.folder(f"images/{split.folder}/{number}")
            writer.image(f"images/{split.folder}/{number}/image.png", render(picture))
            (choice,) = choices(picture, draws, 1, least=2, most=5)
            problems[str(number)] = _problem(choice, picture, split, draws)
            ids[split.name].append(str(number))
    ids |= {other: ids[name] for other, name in SAME.items() if name in ids}
    writer.text("pid_splits.json", json.dumps(ids, separators=(",", ":")))
    writer.text("problems.json", json.dumps(problems, separators=(",", ":")))


def _problem(choice: Choice, picture: Scene, split: SqaSplit, draws: Draws) -> dict[str, Any]:
    plain = draws.chance(HINTED) and choice.ability != "cp"
    hint = choice.hint or (f"The picture shows {len(picture.objects)} objects." if plain else "")
    subject = SUBJECTS[choice.ability]
    return {
        "question": choice.question, "choices": list(choice.options), "answer": choice.answer, "hint": hint,
        "image": "image.png", "task": "closed choice", "grade": "grade2", "subject": subject,
        "topic": choice.ability, "category": choice.ability, "skill": "", "lecture": "", "solution": "",
        "split": split.folder,
    }  # fmt: skip


WORLD = World("scienceqa", IMAGES, write, "d17ac591022659b46d38e33e70c6039725a070f795cf3c87a231d0e726ff0aba")
