"""Files of captions in three layouts, and files that are of none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlbench.cell.caption_files import read_captions
from vlbench.errors import UserError


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def pictures(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def told(file: Path, images: Path) -> list[tuple[str, str, str, str]]:
    return [
        (s.id, s.images[0].relative_to(images).as_posix(), s.target, s.cluster) for s in read_captions(file, images)
    ]


COCO = {
    "images": [{"id": 9, "file_name": "COCO_9.jpg"}, {"id": 4, "file_name": "sub/4.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 9, "caption": "A cat."},
        {"id": 2, "image_id": 9, "caption": "Einé Katze "},
        {"id": 7, "image_id": 4, "caption": "A dog."},
    ],
}


def test_coco(tmp_path: Path) -> None:
    images = pictures(tmp_path / "i", "COCO_9.jpg", "sub/4.jpg")
    assert told(write(tmp_path / "c.json", COCO), images) == [
        ("caption-1", "COCO_9.jpg", "A cat.", "9"),
        ("caption-2", "COCO_9.jpg", "Einé Katze ", "9"),
        ("caption-7", "sub/4.jpg", "A dog.", "4"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "a red bus\tbus.jpg\n\ntwo dogs \ta/dogs.jpg\textra\r\n",
        "filepath\ttitle\nbus.jpg\ta red bus\n\na/dogs.jpg\ttwo dogs\n",
        "caption\timage\na red bus\tbus.jpg\n\ntwo dogs\ta/dogs.jpg",
    ],
)
def test_conceptual_captions(tmp_path: Path, text: str) -> None:
    """With and without a line of names, which may put the columns the other way round; ids are line numbers."""
    images = pictures(tmp_path / "i", "bus.jpg", "a/dogs.jpg")
    found = told(write(tmp_path / "c.tsv", text), images)
    assert [row[1:] for row in found] == [("bus.jpg", "a red bus", "bus.jpg"), ("a/dogs.jpg", "two dogs", "a/dogs.jpg")]
    assert len({row[0] for row in found}) == 2


@pytest.mark.parametrize("key", ["id", "image_id"])
def test_visual_genome(tmp_path: Path, key: str) -> None:
    images = pictures(tmp_path / "i", "VG_100K/12.jpg", "VG_100K_2/5.jpg")
    content = [
        {key: 12, "regions": [{"region_id": 3, "phrase": "a wall", "x": 0}, {"region_id": 4, "phrase": "a tree"}]},
        {key: 5, "regions": [{"region_id": 6, "phrase": "a sign"}]},
    ]
    assert told(write(tmp_path / "regions.json", content), images) == [
        ("region-3", "VG_100K/12.jpg", "a wall", "12"),
        ("region-4", "VG_100K/12.jpg", "a tree", "12"),
        ("region-6", "VG_100K_2/5.jpg", "a sign", "5"),
    ]


def test_images_that_are_not_there_are_counted(tmp_path: Path) -> None:
    images = pictures(tmp_path / "i", "COCO_9.jpg")
    with pytest.raises(UserError, match=r"1 of the 2 images of calibration=.* are not there, the first .*sub/4\.jpg"):
        read_captions(write(tmp_path / "c.json", COCO), images)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("c.json", "{", "is not JSON, or cut short"),
        ("c.json", {"annotations": []}, "is of no layout that is known: COCO's captions"),
        ("c.json", [{"image": "a.jpg", "caption": "x"}], "is of no layout that is known"),
        ("c.json", [], "is of no layout that is known"),
        ("c.json", {**COCO, "annotations": [{"id": 1, "image_id": 5, "caption": "x"}]}, "entry 0 of annotations"),
        ("c.json", {**COCO, "annotations": [{"id": 1, "image_id": 9}]}, "entry 0 of annotations is not as COCO has it"),
        ("c.json", {**COCO, "annotations": [{"id": 1, "image_id": 9, "caption": 3}]}, "3 is no text"),
        ("c.json", {**COCO, "images": [{"id": 9}]}, "images is not as COCO has it"),
        ("c.json", {**COCO, "images": [{"id": 9, "file_name": "../x.jpg"}]}, "no file inside the data folder"),
        ("c.json", [{"id": 1, "regions": [{"region_id": 2}]}], "entry 0 is not as Visual Genome has it"),
        ("c.json", [{"id": "a/b", "regions": []}], "entry 0 is not as Visual Genome has it"),
        ("c.tsv", "only words\n", "line 1 should be a caption, a tab and an image file"),
        ("c.tsv", "words\thttp://x.org/a.jpg\n", "line 1 names the address http://x.org/a.jpg"),
        ("c.tsv", "words\t/etc/a.jpg\n", "no file inside the data folder"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, name: str, content: Any, sentence: str) -> None:
    file = write(tmp_path / name, content)
    with pytest.raises(UserError, match=f"calibration={file}.*{sentence}"):
        read_captions(file, tmp_path)


def test_what_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        read_captions(tmp_path / "c.json", tmp_path)
