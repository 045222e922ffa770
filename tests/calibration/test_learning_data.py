"""What is learnt from is asked in the words of the evaluation. Oracle: the settings that evaluation gets."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.tasks.asked import draw, make
from vlbench.calibration.data import LearningData
from vlbench.images.pipeline import ImageStore
from vlbench.images.spec import ImageSpec
from vlbench.plugins.table import table
from vlbench.task import Task


def charts(root: Path, **options: Any) -> Task:
    """ChartQA with two charts in train and one in test."""
    for split, names in (("train", "ab"), ("test", "c")):
        rows = [{"imgname": f"{name}.png", "query": f"Which {name}?", "label": name} for name in names]
        for n, name in enumerate(names):
            draw(root / split / "png" / f"{name}.png", 40 * n + 20 * len(split))
        for half in ("human", "augmented"):
            (root / split / f"{split}_{half}.json").write_text(json.dumps(rows if half == "human" else []))
    task: Task = make("chartqa", root, **options)
    return task


@pytest.mark.parametrize("options", [{}, {"prompt": "Look: {}"}])
def test_batches_have_the_words_around_the_question(options: dict[str, Any], tmp_path: Path) -> None:
    task = charts(tmp_path, **options)
    model: Any = SimpleNamespace(device=torch.device("cpu"))
    data = LearningData(model, task, ImageStore(ImageSpec(size=4)), 0)
    prompt = task.settings("test")["prompt"]
    assert "{}" in prompt
    batches = data.batches(2)
    for batch in (batches.at(0), batches.share(0, 0, 1), *data.calibration(2)):
        assert batch is not None
        assert batch.options["prompt"] == prompt
        assert {s.text for s in batch.samples} <= {"Which a?", "Which b?"}


def test_a_task_that_leaves_the_words_to_the_model_gives_none() -> None:
    cls = table("tasks").get("vqav2").load()
    assert cls(Path(), cls.Options()).taught() == {}
