"""The mini GQA, OK-VQA and nocaps: pinned digests of small ones, and what the official layouts must hold."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from vlbench.mini.scenes import scene
from vlbench.mini.world import mini_root
from vlbench.mini.writer import Writer
from vlbench.plugins.table import table

gqa: Any = importlib.import_module("vlbench.tasks._worlds.gqa")
karpathy: Any = importlib.import_module("vlbench.tasks._worlds.karpathy")
nocaps: Any = importlib.import_module("vlbench.tasks._worlds.nocaps")
okvqa: Any = importlib.import_module("vlbench.tasks._worlds.okvqa")

GQA = (gqa.GqaSplit("train", "train", 4, 6, 1), gqa.GqaSplit("testdev", "val", 3, 3, 9))
SMALL = {
    "gqa": lambda w: gqa.write_splits(w, GQA),
    "okvqa": lambda w: okvqa.write_splits(w, (okvqa.OkvqaSplit("val2014", "val", 4, 2, 7),)),
    "nocaps": lambda w: nocaps.write_world(w, 5, (karpathy.CaptionSplit("train", "train2014", 2, 1),)),
}
PINNED = {
    "gqa": "07dce128a565a4dff133bc391bcc37be01518d471b1ef5e911d8b9387c33c1ee",
    "okvqa": "6d7104874613d668928774f31f2bc58843070d2fff85afc454351284fdf58e8d",
    "nocaps": "bb3ca40abe76f07c2c646e1c2394a73177d5d2541eb6d28f2277ab3538d0c7fc",
}


def digest(name: str, root: Path) -> str:
    writer = Writer(root, 1)
    SMALL[name](writer)
    return writer.digest()


@pytest.mark.parametrize("name", SMALL)
def test_small_worlds_are_pinned(name: str, tmp_path: Path) -> None:
    assert digest(name, tmp_path) == PINNED[name]


def test_builds_do_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    code = (
        "import importlib.util, sys; from pathlib import Path\n"
        "spec = importlib.util.spec_from_file_location('small', sys.argv[1])\n"
        "small = importlib.util.module_from_spec(spec); spec.loader.exec_module(small)\n"
        "for name in small.SMALL:\n"
        "    (Path(sys.argv[2]) / name).mkdir()\n"
        "    assert small.digest(name, Path(sys.argv[2]) / name) == small.PINNED[name], name\n"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code, __file__, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_gqa_rows(tmp_path: Path) -> None:
    digest("gqa", tmp_path)
    rows = json.loads((tmp_path / "train_balanced_questions.json").read_text())
    assert len(rows) == 24
    for number, row in rows.items():
        assert number.startswith(row["imageId"])
        assert {"semantic", "entailed", "equivalent", "isBalanced", "groups", "types", "fullAnswer"} <= row.keys()
        assert (tmp_path / "images" / f"{row['imageId']}.jpg").is_file()
        assert (row["types"]["structural"] == "query") is not (row["answer"] in ("yes", "no"))


def test_okvqa_rows(tmp_path: Path) -> None:
    digest("okvqa", tmp_path)
    questions = json.loads((tmp_path / "OpenEnded_mscoco_val2014_questions.json").read_text())
    annotations = json.loads((tmp_path / "mscoco_val2014_annotations.json").read_text())
    assert [q["question_id"] for q in questions["questions"]] == [a["question_id"] for a in annotations["annotations"]]
    for row in annotations["annotations"]:
        assert [human["answer_id"] for human in row["answers"]] == list(range(1, 11))
        assert all({"raw_answer", "answer", "answer_confidence"} <= human.keys() for human in row["answers"])


def test_nocaps_rows(tmp_path: Path) -> None:
    digest("nocaps", tmp_path)
    content = json.loads((tmp_path / "nocaps_val_4500_captions.json").read_text())
    counts = Counter(row["image_id"] for row in content["annotations"])
    assert set(counts.values()) == {10}
    for row in content["images"]:
        assert counts[row["id"]]
        objects = len(scene("val", row["id"] - 1, nocaps.STREAM).objects)
        assert row["domain"] == nocaps.DOMAINS[objects]
        assert (tmp_path / "images" / row["file_name"]).is_file()


def test_whole_worlds_have_all_groups() -> None:
    """Every kind of question and every domain has a part of the report split that a mean can be taken of."""
    for name, least in (("gqa", 100), ("nocaps", 40)):
        cls = table("tasks").get(name).load()
        task = cls(mini_root(cls.mini_world()), cls.Options())
        samples = task.samples(cls.roles()["report"])
        counts = Counter(task.groups(samples).values())
        assert min(counts.values()) >= least, counts
        assert len(counts) == 3
