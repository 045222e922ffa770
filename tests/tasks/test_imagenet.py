"""Oracle: timm's accuracy on stored logits (shared/oracles/metrics/imagenet); layouts made here."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vlbench.capability import Batch, Classifier
from vlbench.errors import UserError
from vlbench.task import Sample, digest_samples

ImageNet = importlib.import_module("vlbench.tasks.imagenet").ImageNet

WNIDS = ("n01440764", "n01443537", "n01484850")
SOLUTION = "LOC_val_solution.csv"


class Stored(Classifier):
    """A model whose states are its logits."""

    def __init__(self, classes: int) -> None:
        self.classes = [f"n{i:08d}" for i in range(classes)]

    def logits(self, states: Any) -> Tensor:
        return torch.as_tensor(states)


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def image_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Six images of val in class folders."""
    for number in range(6):
        touch(tmp_path / "folders/val" / WNIDS[number % 3] / image_name(number))
    return tmp_path / "folders"


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """The same six images as Kaggle lays them out."""
    rows = ["ImageId,PredictionString"]
    for number in range(6):
        touch(tmp_path / "flat/val" / image_name(number))
        rows.append(f"{image_name(number)[:-5]},{WNIDS[number % 3]} 1 2 3 4 {WNIDS[number % 3]} 5 6 7 8 ")
    (tmp_path / "flat" / SOLUTION).write_text("\n".join(rows) + "\n")
    return tmp_path / "flat"


def make(root: Path) -> Any:
    return ImageNet(root, ImageNet.Options())


def cases(shared: Path) -> dict[str, tuple[Any, Any]]:
    stored = np.load(shared / "oracles/metrics/imagenet/logits_a.npz")
    return {
        "ties1000": (stored["ties1000_logits_x4_int8"].astype(np.float32) / 4, stored["ties1000_labels"]),
        "cont100": (stored["cont100_logits"], stored["cont100_labels"]),
        "small3": (stored["small3_logits"], stored["small3_labels"]),
        "allequal_64x1000_zeros": (np.zeros((64, 1000), np.float32), stored["allequal_labels"]),
    }


@pytest.mark.parametrize("case", ["ties1000", "cont100", "small3", "allequal_64x1000_zeros"])
def test_top1_and_top5_are_timms(shared: Path, tmp_path: Path, case: str) -> None:
    logits, labels = cases(shared)[case]
    oracle = json.loads((shared / "oracles/metrics/imagenet/results_a.json").read_text())[case]
    model, task = Stored(logits.shape[1]), make(tmp_path)
    samples = [Sample(str(i), (), target=model.classes[label]) for i, label in enumerate(labels)]
    batch = Batch(samples, torch.empty(0), torch.arange(len(samples))[:, None])
    found = task.aggregate(
        samples,
        [task.score(s, p) for s, p in zip(samples, model.classify(logits, batch), strict=True)],
    )

    assert found.keys() == task.metrics.keys()
    for metric, bounds in oracle["tie_bounds"].items():
        assert bounds["pessimistic"] - 1e-4 <= found[metric] <= bounds["optimistic"] + 1e-4
        if bounds["pessimistic"] == bounds["optimistic"]:
            assert found[metric] == pytest.approx(oracle["timm"][metric], abs=1e-4)


def test_score_of_each_rank(tmp_path: Path) -> None:
    sample = Sample("x", (), target="a")
    score = make(tmp_path).score
    assert score(sample, {"top5": ["a", "b", "c", "d", "e"]}) == [1, 1]
    assert score(sample, {"top5": ["b", "c", "d", "e", "a"]}) == [0, 1]
    assert score(sample, {"top5": ["b", "c", "d", "e", "f"]}) == [0, 0]


def test_class_folders(folders: Path) -> None:
    task = make(folders)
    assert task.missing("val") == []
    samples = task.samples("val")
    assert [s.id for s in samples[:3]] == [
        f"{WNIDS[0]}/{image_name(0)}",
        f"{WNIDS[0]}/{image_name(3)}",
        f"{WNIDS[1]}/{image_name(1)}",
    ]
    assert [s.target for s in samples] == sorted(WNIDS * 2)
    assert all(s.images[0].is_file() and s.cluster == "" for s in samples)


def test_flat_and_folder_layout_are_one_split(folders: Path, flat: Path) -> None:
    assert make(flat).missing("val") == []
    assert digest_samples(make(flat).samples("val")) == digest_samples(make(folders).samples("val"))
    (flat / SOLUTION).rename(flat / "val" / SOLUTION)
    assert digest_samples(make(flat).samples("val")) == digest_samples(make(folders).samples("val"))


def test_select_and_train_share_no_image(tmp_path: Path) -> None:
    for number in range(600):
        touch(tmp_path / "train" / WNIDS[number % 3] / f"{WNIDS[number % 3]}_{number}.JPEG")
    task = make(tmp_path)
    train, select = ({s.id for s in task.samples(split)} for split in ("train", "select"))
    assert not train & select
    assert len(train | select) == 600
    assert 2 <= len(select) <= 30  # 2 % of 600, by digest


def test_only_pictures_count(folders: Path) -> None:
    for name in ("a.jpg", "b.JPG", "c.png", "d.jpeg", "._a.jpg", "notes.txt", "e.jpg.part"):
        touch(folders / "val" / WNIDS[2] / name)
    touch(folders / "val/.DS_Store")
    (folders / "val/.thumbnails").mkdir()
    names = {s.images[0].name for s in make(folders).samples("val")} - {image_name(n) for n in range(6)}
    assert names == {"a.jpg", "b.JPG", "c.png", "d.jpeg"}


def test_missing_says_what_goes_where(tmp_path: Path, flat: Path) -> None:
    task = make(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere/val") in task.missing("val")[0]
    assert task.missing("select") == task.missing("train")
    with pytest.raises(UserError, match="WordNet id"):
        task.samples("val")
    (flat / SOLUTION).unlink()
    assert SOLUTION in make(flat).missing("val")[0]
    (flat / "val").rename(flat / "train")
    assert SOLUTION not in make(flat).missing("train")[0]


def test_bad_folders_are_refused(folders: Path, flat: Path) -> None:
    (folders / "val/n09999999").mkdir()
    with pytest.raises(UserError, match=r"1 class folders of .* have no image: n09999999"):
        make(folders).samples("val")
    touch(folders / "val/loose.JPEG")
    with pytest.raises(UserError, match=r"beside its class folders: loose\.JPEG"):
        make(folders).samples("val")
    (flat / "val" / image_name(5)).unlink()
    with pytest.raises(UserError, match=r"lacks 1 images .*: ILSVRC2012_val_00000005"):
        make(flat).samples("val")
    touch(flat / "val" / image_name(5))
    touch(flat / "val" / image_name(77))
    with pytest.raises(UserError, match=r"no class for 1 images .*: ILSVRC2012_val_00000077"):
        make(flat).samples("val")
    (flat / SOLUTION).write_text("name,class\na,b\n")
    with pytest.raises(UserError, match="ImageId and PredictionString"):
        make(flat).samples("val")


def test_unknown_split_is_named(folders: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'val'"):
        make(folders).samples("vals")


def test_pictures_of_other_formats_are_samples_and_the_rest_is_named(folders: Path) -> None:
    """The same photo as .webp, .bmp and .tif vanished in silence."""
    for name in ("a.webp", "b.BMP", "c.tif", "d.tiff", "notes.txt"):
        touch(folders / "val" / WNIDS[2] / name)
    task = make(folders)
    assert len(task.samples("val")) == 6 + 4
    (remark,) = task.remarks("val")
    assert "1 files" in remark
    assert f"{WNIDS[2]}/notes.txt" in remark


def test_folders_that_are_named_by_the_number_of_the_class(folders: Path) -> None:
    """ImageNet-1k's order is that of its ids: 0, 1 and 2 are the three first."""
    numbers = {"n01440764": "0", "n01443537": "1", "n01484850": "2"}
    named = make(folders).samples("val")
    for wnid, number in numbers.items():
        (folders / "val" / wnid).rename(folders / "val" / number)
    assert "3 of the 3 class folders" in make(folders).remarks("val")[0]
    task = ImageNet(folders, ImageNet.Options(classes="index"))
    assert [s.target for s in task.samples("val")] == ["n01440764"] * 2 + ["n01443537"] * 2 + ["n01484850"] * 2
    assert sorted(s.id for s in task.samples("val")) == sorted(s.id for s in named)
    assert task.remarks("val") == []
    (folders / "val/2").rename(folders / "val/1000")
    with pytest.raises(UserError, match=r"the folder 1000 of .* is no number from 0 to 999"):
        task.samples("val")
