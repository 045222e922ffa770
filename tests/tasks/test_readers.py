"""Oracle: an id is a whole number or a text, a question is a text, and JSON's other kinds are refused in a sentence."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from tests.tasks.asked import make
from tests.tasks.readers import COCO, READERS, Place, put
from vlbench.errors import UserError

NO_ID: tuple[Any, ...] = (None, [], {}, 1.5, 1.0, True, math.inf, math.nan, "", "1e3")
NO_TEXT: tuple[Any, ...] = (None, [], {}, 1.5, True, math.inf, 7)


@pytest.mark.parametrize("name", READERS)
def test_the_folder_as_it_should_be(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    task = reader.write(tmp_path)
    assert task.missing(reader.split) == []
    samples = task.samples(reader.split)
    assert len({sample.id for sample in samples}) == len(samples) > 0
    assert all(path.is_file() for sample in samples for path in sample.images)


PLACES = [
    *((name, place, NO_ID) for name, reader in READERS.items() for place in reader.ids),
    *((name, place, NO_TEXT) for name, reader in READERS.items() for place in reader.texts),
]
# Files in which a text of any signs is an id.
LOOSE = ("pid_splits.json", "unpacked/mmstar-val.json", "dataset_coco.json", "val_v1.0.json")


@pytest.mark.parametrize(("name", "place", "values"), PLACES, ids=lambda part: str(part)[:60])
def test_another_kind_of_value_is_refused(name: str, place: Place, values: tuple[Any, ...], tmp_path: Path) -> None:
    reader = READERS[name]
    for value in values:
        task = reader.write(tmp_path, lambda files, value=value: put(files, place, value))
        if value == "1e3" and place[0] in LOOSE:
            continue
        with pytest.raises(UserError) as told:
            task.samples(reader.split)
        assert len(str(told.value)) < 1000


@pytest.mark.parametrize("name", ["vqav2", "okvqa"])
def test_answers_of_another_image_are_refused(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    answered = reader.ids[-1]
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014" / "COCO_val2014_000000000008.jpg").touch()
    task = reader.write(tmp_path, lambda files: put(files, answered, 8))
    with pytest.raises(UserError, match="answers to questions of other images"):
        task.samples("val")


def test_a_caption_of_another_image_is_refused(tmp_path: Path) -> None:
    task = READERS["karpathy"].write(tmp_path, lambda files: put(files, READERS["karpathy"].ids[0], 8))
    with pytest.raises(UserError, match=f"of image 8 and names the file val2014/{COCO}"):
        task.samples("test")


@pytest.mark.parametrize("name", ["gqa", "scienceqa"])
def test_a_question_that_stands_twice_is_refused(name: str, tmp_path: Path) -> None:
    """JSON would drop the first in silence."""
    reader = READERS[name]
    task = reader.write(tmp_path)
    file, key = ("testdev_balanced_questions.json", "q1") if name == "gqa" else ("problems.json", "1")
    row = json.dumps(reader.files[file][key])
    (tmp_path / file).write_text(f'{{"{key}": {row}, "{key}": {row}}}')
    with pytest.raises(UserError, match=f"has '{key}' twice"):
        task.samples(reader.split)


@pytest.mark.parametrize("ending", [".webp", ".bmp", ".tif"])
@pytest.mark.parametrize("name", ["vqav2", "gqa"])
def test_pictures_of_other_formats_are_read(name: str, ending: str, tmp_path: Path) -> None:
    reader = READERS[name]
    reader.write(tmp_path)
    picture = tmp_path / reader.pictures[0]
    picture.rename(picture.with_suffix(ending))
    (sample,) = make(reader.task, tmp_path).samples(reader.split)
    assert sample.images[0].suffix == ending


@pytest.mark.parametrize("name", ["pope", "nlvr2", "gqa"])
def test_a_pipe_in_a_files_place_is_refused_and_not_waited_for(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    task = reader.write(tmp_path)
    file = tmp_path / next(iter(reader.files))
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError):
        task.samples(reader.split)
