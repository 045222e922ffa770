"""Lists as POPE's builder makes them. Oracles: the lists that its own code made of the masks of forty-one photographs
(which objects are popular and adversarial to those asked for), and COCO annotations made by hand."""

from __future__ import annotations

import importlib
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.beside import needs
from tests.tasks.asked import POPE, draw, make, pope_here
from vlbench.errors import UserError

lists: Any = importlib.import_module("vlbench.tasks._pope_lists")
MASKS = POPE.parent / "coco_semseg_mini"
SHOWN = {
    "1.jpg": ["cat", "dog", "cup"], "2.jpg": ["cat", "dog", "bus"], "3.jpg": ["cat", "cup", "owl", "cat"],
    "4.jpg": ["cat", "fox"], "5.jpg": ["owl"],
}  # fmt: skip


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def kind(row: dict[str, Any]) -> str:
    found = re.fullmatch(r"Is there an? (.+) in the ima?n?ge\?", row["text"])
    assert found, row
    return found[1]


def test_questions_by_hand() -> None:
    """Frequencies: cat 4, then cup, dog and owl 2, then bus and fox 1."""
    made = lists.lists(SHOWN, ["1.jpg", "2.jpg", "3.jpg"])
    for subset, text in made.items():
        asked = rows(text)
        assert [row["question_id"] for row in asked] == list(range(1, len(asked) + 1))
        assert [row["label"] for row in asked[:4]] == ["yes", "no", "yes", "no"]
        for row in asked:
            assert (kind(row) in SHOWN[row["image"]]) is (row["label"] == "yes"), (subset, row)
        by_image = defaultdict(list)
        for row in asked:
            by_image[row["image"], row["label"]].append(kind(row))
        assert all(len(set(kinds)) == len(kinds) for kinds in by_image.values())
    negatives = [kind(row) for row in rows(made["popular"]) if row["label"] == "no" and row["image"] == "2.jpg"]
    assert negatives == ["cup", "owl", "fox"]
    assert "Is there an owl in the image?" in made["popular"]
    assert lists.lists(SHOWN, ["1.jpg"])["random"] == "".join(made["random"].splitlines(keepends=True)[:6])


def shown_by_masks() -> dict[str, list[str]]:
    """Photograph -> its objects: COCO's ids 1 to 90 that have a hundred pixels or more, as SOURCE.md says."""
    names = dict(re.findall(r"^\s+(\d+): (.+)$", (MASKS / "config.yaml").read_text(), flags=re.MULTILINE))
    shown = {}
    for path in sorted((MASKS / "masks").glob("*.png")):
        values, counts = np.unique(np.asarray(Image.open(path)), return_counts=True)
        ids = [int(v) for v, n in zip(values, counts, strict=True) if n >= 100 and 1 <= v <= 90]
        shown[f"{path.stem}.jpg"] = [names[str(v)].strip("'\"") for v in ids]
    return shown


@pope_here
@needs(MASKS)
def test_negatives_are_what_the_original_asks() -> None:
    """From the same objects: the same popular ones, but for the order of equally frequent ones; and adversarial ones
    that stand as often beside what was asked for."""
    shown = shown_by_masks()
    asked = {s: rows((POPE / f"semseg_pope_{s}.json").read_text()) for s in ("random", "popular", "adversarial")}
    images = list(dict.fromkeys(row["image"] for row in asked["popular"]))
    shown = {image: shown[image] for image in images}  # the original counts over what it asks about
    assert set(images) <= set(lists.chosen_images(shown))
    assert all(kind(row) in shown[row["image"]] for row in asked["popular"] if row["label"] == "yes")
    counted = {kind: sum(kind in kinds for kinds in shown.values()) for kinds in shown.values() for kind in kinds}
    mine = {subset: rows(text) for subset, text in lists.lists(shown, images).items()}
    for subset in asked:
        assert len(mine[subset]) == len(asked[subset]) == 246
    for image in images:
        theirs, ours = ([counted[kind(r)] for r in every["popular"] if r["image"] == image and r["label"] == "no"]
                        for every in (asked, mine))  # fmt: skip
        assert sorted(theirs) == sorted(ours), image
    for image, every in [(image, every) for image in images for every in (asked, mine)]:
        pairs = [kind(row) for row in every["adversarial"] if row["image"] == image]
        for place, (there, other) in enumerate(zip(pairs[::2], pairs[1::2], strict=True)):
            free = set(counted) - set(shown[image]) - set(pairs[1::2][:place])
            together = {k: sum({there, k} <= set(kinds) for kinds in shown.values()) for k in free}
            assert together[other] == max(together.values()), (image, there, other)


def coco(root: Path, images: int) -> dict[str, list[str]]:
    """Annotations of so many images, each with some of five categories; every fifth shows two kinds only."""
    names = ["cat", "dog", "cup", "bus", "owl"]
    content: dict[str, Any] = {"images": [], "annotations": [], "info": {"id": 1}}
    content["categories"] = [{"id": 7 * n, "name": name, "supercategory": "x"} for n, name in enumerate(names)]
    shown = {}
    for n in range(images):
        file = f"COCO_train2014_{n:012d}.jpg"
        draw(root / "train2014" / file, n % 250)
        content["images"].append({"id": n, "file_name": file, "height": 4})
        kinds = [names[(n + k) % 5] for k in range(2 if n % 5 == 0 else 3)]
        shown[file] = kinds
        for name in [*kinds, kinds[0]]:
            number = 7 * names.index(name)
            content["annotations"].append({"image_id": n, "category_id": number, "segmentation": [[1, 2]], "id": n})
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train2014.json").write_text(json.dumps(content))
    return shown


def test_prepare_makes_select_and_train_of_coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("vlbench.tasks.pope")
    monkeypatch.setattr(module, "SELECTED", 5)
    monkeypatch.setattr(module, "TRAINED", 9)
    shown = coco(tmp_path, 20)
    task = make("pope", tmp_path)
    assert "vlbench data prepare task=pope makes them" in task.missing("select")[-1]
    for split in ("select", "train"):
        task.prepare(split, lambda line: None)
        assert task.missing(split) == []
    select, train = task.samples("select"), task.samples("train")
    assert (len({s.images for s in select}), len({s.images for s in train})) == (5, 9)
    assert not {s.images for s in select} & {s.images for s in train}
    assert len(select) == 5 * 4 * 3  # of five kinds, two are absent: two questions of each answer a subset
    for sample in [*select, *train]:
        name = sample.images[0].name
        assert len(set(shown[name])) == 3
        assert (kind({"text": sample.text}) in shown[name]) is ("yes" in sample.target)
    assert not {s.id for s in select} & {s.id for s in train}
    before = (tmp_path / "train" / "coco_pope_random.json").read_bytes()
    (tmp_path / "annotations" / "instances_train2014.json").unlink()
    task.prepare("train", lambda line: None)
    assert (tmp_path / "train" / "coco_pope_random.json").read_bytes() == before
    assert task.roles() == {"train": "train", "select": "select", "report": "test"}


@pytest.mark.parametrize("content", ["[]", '{"categories": [], "images": []}', '{"images": [{"id": 1}]}'])
def test_another_file_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "instances_train2014.json").write_text(content)
    with pytest.raises(UserError, match="is no file of COCO instances"):
        make("pope", tmp_path).prepare("select", lambda line: None)
    assert not (tmp_path / "select").exists()
