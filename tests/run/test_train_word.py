"""A task without training data learns from another's. Oracle: the sentence that says so; and that what is learnt is the
other task's train split, by its digest and its samples."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Lab, workspace
from vlbench.cell.cell import open_cell
from vlbench.cell.resolve import resolve
from vlbench.cell.words import parse

QUIZ = '''"""Classes of images, without anything to learn from."""

from vlbench.plugins.table import table
from vlbench.task import task


@task("quiz", title="Quiz", capability="classify", metric="top1", version=1)
class Quiz(table("tasks").get("imagenet").load()):
    """What it is."""

    @classmethod
    def roles(cls):
        return {"report": "val"}

    @classmethod
    def mini_world(cls):
        return None
'''
FINETUNE = ("finetune.steps=2", "finetune.batch_size=2", "recipe=mini")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Lab]:
    with workspace(tmp_path, monkeypatch, capsys) as made:
        made.plug("tasks/quiz.py", QUIZ)
        shutil.copytree(made.data / "val", made.folder / "quiz" / "val")
        (made.folder / "vlbench.toml").write_text(
            f'[roots]\nimagenet = "{made.data}"\nquiz = "{made.folder / "quiz"}"\n'
        )
        yield made


@pytest.mark.parametrize(
    "words",
    ["wanda", "taylor", "shortgpt", "sleb", "magnitude+finetune", "upop recipe=mini", "grid", "dense+lora"],
)
def test_a_task_without_training_data_says_what_to_do(lab: Lab, words: str) -> None:
    told = lab.refused_run("task=quiz", *f"method={words}".split())
    assert "task=quiz has no training data: learn from another task's with train=TASK" in told
    assert "calibration=TASK or calibration=FILE" in told


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("random", ()),
        ("magnitude+finetune", ("train=imagenet", *FINETUNE)),
        ("wanda+finetune", ("train=imagenet", "calibration_samples=4", *FINETUNE)),
        ("wanda", ("calibration=imagenet", "calibration_samples=4")),
    ],
)
def test_it_runs_to_its_end_where_one_is_named(lab: Lab, method: str, words: tuple[str, ...]) -> None:
    told = lab.run("task=quiz", f"method={method}", *words, "--json")
    assert told.code == 0, told.err
    record = json.loads(told.out)
    trained = [link["options"].get("train") for link in record["chain"]]
    assert trained == ["imagenet" if word else None for word in _learning(method, words)]
    assert (record["identity"]["train"] is None) == ("train=imagenet" not in words)


def _learning(method: str, words: tuple[str, ...]) -> list[bool]:
    """Which links learn from train=."""
    return ["train=imagenet" in words and link in ("wanda", "finetune") for link in method.split("+")]


def test_the_samples_are_the_other_tasks(lab: Lab) -> None:
    from vlbench.calibration.data import LearningData

    lab.plug("tasks/quiz.py", QUIZ)
    opened = open_cell(
        resolve(parse(["task=quiz", *lab.words[2:], "suite=full", "method=random+finetune", "train=imagenet"]))
    )
    unused: Any = None
    data = LearningData(unused, opened.task, unused, 0, None, opened.learnt)
    names = {str(path.relative_to(lab.data)) for sample in data.samples("train") for path in sample.images}
    assert names
    assert all(name.startswith("train/") for name in names)
    assert data.of(unused).samples("train") == data.samples("train")
    before, image = opened.id, sorted((lab.data / "train").rglob("*.png"))[0]
    shutil.copy(sorted((lab.data / "train").rglob("*.png"))[1], image)
    assert open_cell(opened.spec).id != before
    assert opened.dense().id == open_cell(opened.spec).dense().id


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("method=magnitude train=imagenet", "train=imagenet has no meaning here: no link of method=magnitude learns"),
        ("method=random train=imagenet", "no link of method=random learns from it"),
        ("method=wanda calibration=imagenet train=imagenet", "no link of method=wanda learns from it"),
        ("method=wanda train=quiz", "train=quiz is the task itself"),
        ("method=wanda train=imagenett", "there is no task 'imagenett'. Did you mean 'imagenet'?"),
        ("method=wanda train=vqav2", "train=vqav2 has samples to answer, and task=quiz needs some to classify"),
        ("method=magnitude+finetune train=imagenet tune=1e-3,1e-4", "task=quiz has no split to choose settings on"),
        ("method=grid train=imagenet", "task=quiz has no split to choose settings on"),
        ("method=wanda train=imagenet calibration_samples=999", "999 calibration samples were asked for, and train=i"),
    ],
)  # fmt: skip
def test_what_cannot_be_learnt_from_is_told(lab: Lab, words: str, sentence: str) -> None:
    assert sentence in lab.refused_run("task=quiz", *words.split())


def test_images_of_the_report_split_are_refused_under_any_name(lab: Lab) -> None:
    shown = next((lab.folder / "quiz" / "val").rglob("*.png"))
    shutil.copy(shown, next((lab.data / "train").iterdir()) / "other.png")
    told = lab.refused_run("task=quiz", "method=wanda", "train=imagenet", "calibration_samples=4")
    assert "train=imagenet shows 1 image of the report split val of quiz, byte for byte" in told
