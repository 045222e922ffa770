"""What images hold is in the identity: the rules of design section 2, on folders that are changed byte by byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cell.test_cell import cell, identity
from vlbench.cell import contents
from vlbench.cell.contents import content_digest, files_of
from vlbench.errors import UserError
from vlbench.images.maps import LabelMap
from vlbench.mini.world import FILES, worlds_folder
from vlbench.task import Sample


def repaint(file: Path) -> None:
    pixels = np.asarray(Image.open(file)).copy()
    pixels[0, 0] ^= 255
    Image.fromarray(pixels).save(file)


def test_an_overwritten_image_makes_another_cell_and_another_baseline(box: Path) -> None:
    words = ("", "method=magnitude", "method=magnitude+finetune")
    dense, pruned, trained = map(identity, words)
    split = cell("method=magnitude").dense().split_digest
    file = next((box / "data" / "val").rglob("*.png"))
    before = file.read_bytes()
    repaint(file)
    assert identity("") != dense
    assert identity("method=magnitude") != pruned
    assert cell("method=magnitude").dense().split_digest != split, "the dense row is compared with others"
    file.write_bytes(before)
    assert tuple(map(identity, words)) == (dense, pruned, trained)
    repaint(next((box / "data" / "train").rglob("*.png")))
    assert identity("method=magnitude") == pruned, "nothing is learnt from train"
    assert identity("method=magnitude+finetune") != trained


def test_label_maps_count(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    Image.new("L", (4, 4)).save(tmp_path / "map.png")
    sample = Sample("a", (tmp_path / "a.png",), target=LabelMap(tmp_path / "map.png"))
    assert files_of([sample, sample]) == [tmp_path / "a.png", tmp_path / "map.png"]
    before = content_digest([sample])
    Image.new("L", (4, 4), 7).save(tmp_path / "map.png")
    assert content_digest([sample]) != before


@pytest.mark.parametrize("role", ["train", "select"])
def test_an_image_of_the_report_split_is_refused_under_any_name(box: Path, role: str) -> None:
    random, reported = np.random.default_rng(1), next((box / "data" / "val").rglob("*.png"))
    for number in range(60):  # enough that some of them are cut off as select
        pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(box / "data" / "train" / "n90000000" / f"more_{number}.png")
    task = cell("").task
    learnt = task.samples(task.split_for(role))[0].images[0]
    shutil.copy(reported, learnt)
    with pytest.raises(UserError, match=rf"shows 1 image of the report split val .*{learnt.name} is {reported.name}"):
        _ = cell("method=magnitude+finetune").id
    assert cell("method=magnitude").id, "which learns nothing"


@pytest.mark.usefixtures("mini_world")
@pytest.mark.parametrize("damage", ["pixel", "stray", "missing", "list"])
def test_a_mini_world_that_is_not_as_built_is_refused_by_name(box: Path, damage: str) -> None:
    assert cell("suite=mini").id
    root = worlds_folder() / "imagenet"
    file = next((root / "val").rglob("*.png"))
    if damage == "pixel":
        repaint(file)
    elif damage == "stray":
        file = shutil.copy(file, file.with_name("another.png"))
    elif damage == "missing":
        file.unlink()
    else:
        file = root / FILES
        file.write_text(json.dumps({"files": 3}))
    contents.verify_world.cache_clear()
    with pytest.raises(UserError, match=rf"{file.name}.*delete .*built anew"):
        cell("suite=mini")
