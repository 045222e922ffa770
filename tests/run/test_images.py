"""Samples of several images and models that read one: a sentence before anything is written, and a way that works."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import Lab, write_toml
from tests.tasks.tables import cell, prepared, question, write_tsv

MINI = Path(__file__).resolve().parents[2] / "registry" / "mini"


@pytest.mark.parametrize("model", ["llava-mini", "blip-vqa-mini"])
def test_images_are_never_left_out_unsaid(model: str, lab: Lab) -> None:
    """MMMU with a question that shows two pictures."""
    root = lab.folder / "mmmu"
    root.mkdir()
    rows = [question(n, id=f"validation_Art_{n}", split="validation", category="Art") for n in (1, 2)]
    write_tsv(
        root / "MMMU_DEV_VAL.tsv", [{**rows[0], "image": repr([cell(1), cell(2)])}, {**rows[1], "image": cell(3)}]
    )
    prepared("mmmu", root, "val")
    write_toml(lab.folder, {"mmmu": root})
    words = ["run", "suite=full", "task=mmmu", f"model={model}", f"checkpoint={MINI / model}"]
    refused = lab(*words)
    assert refused.code == 2
    assert f"1 samples of task=mmmu show up to 2 images, and {model} reads 1 at once: images=first shows" in refused.err
    assert not list(lab.folder.glob("runs/*/cell.json"))
    taken = lab(*words, "images=first")
    assert taken.code == 0, taken.err
    assert len(list(lab.folder.glob("runs/*/result.json"))) == 1
