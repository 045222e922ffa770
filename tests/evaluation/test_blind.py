"""blind=true: no pixel reaches the model, other cells keep their identities, and its rows are a block of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vlbench.cell.cell import open_cell
from vlbench.cell.resolve import resolve
from vlbench.evaluation.loop import Evaluator
from vlbench.evaluation.predictions import Predictions
from vlbench.images.pipeline import ImageStore
from vlbench.leaderboard.rows import rows
from vlbench.machine.ui import Screen
from vlbench.run.runner import Runner, open_model

pytestmark = pytest.mark.slow

WORDS = {"task": "vqav2", "limit": "24", "evaluation.batch_size": "12"}


@pytest.mark.parametrize("resize", ["squash", "keep"])
def test_the_model_sees_one_colour(tmp_path: Path, resize: str) -> None:
    """0 when it is normalised, at the images' own sizes."""
    cell = open_cell(resolve({**WORDS, "blind": "true"}))
    model: Any = open_model(cell)[0]
    seen: list[Any] = []

    def encode(images: Any) -> Any:
        seen.append(images)
        return plain(torch.stack(images) if isinstance(images, list) else images)

    plain, model.encode = model.encode, encode
    store = ImageStore(model.card.image)
    if resize == "keep":
        store.spec = model.card.image.__class__(model.card.image.size, "keep")
    evaluator = Evaluator(model, cell.task, store, settings=cell.settings, batch_size=12)
    lines = evaluator.run(cell.samples, Predictions(tmp_path / "predictions.jsonl"))
    assert {line["status"] for line in lines} == {"ok"}
    assert seen
    for images in seen:
        assert isinstance(images, list) == (resize == "keep")
        assert all(not bool(image.any()) and image.shape[0] == 3 for image in images)


def test_it_enters_identities_only_where_it_is_asked_for() -> None:
    plain, off, on = (open_cell(resolve({**WORDS, **more})) for more in ({}, {"blind": "false"}, {"blind": "true"}))
    assert plain.id == off.id != on.id
    assert "blind" not in plain.evaluation
    assert "blind" not in plain.settings
    assert on.evaluation["blind"] is on.settings["blind"] is True
    assert on.split_digest != plain.split_digest
    assert on.train_digest == plain.train_digest  # methods learn from the same
    assert open_cell(resolve({**WORDS, "blind": "true", "method": "magnitude"})).dense().id == on.id


def test_what_the_texts_alone_are_worth(tmp_path: Path) -> None:
    runner = Runner(tmp_path, Screen(quiet=True))
    whole = {k: v for k, v in WORDS.items() if k != "limit"} | {"limit": "120"}
    seeing, blind = (runner.run({**whole, "blind": word}) for word in ("false", "true"))
    assert blind.complete
    assert blind.metrics["accuracy"] < seeing.metrics["accuracy"] - 15
    assert blind.metrics["accuracy"] > 5  # yes and no are half of the answers
    records = [r.model_copy(update={"flags": []}) for r in (seeing, blind)]
    assert len({row.block for row in rows(records)}) == 2
