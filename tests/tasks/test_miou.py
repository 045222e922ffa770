"""Oracle: mmsegmentation 1.2.2 and 0.14.1 and exact integers on 104 real label maps (manifest, section 6)."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.oracles import Oracle
from tests.registry.test_blip import recorded
from vlbench.images.maps import LabelMap, read_map

miou = importlib.import_module("vlbench.tasks._miou")

CASES = {
    "ade4_light": "ade4_light", "ade4_heavy": "ade4_heavy", "ade4_present": "ade4_present", "coco100": "coco100",
    "coco40_present": "coco40_present", "ade4_heavy_noreduce": "ade4_heavy", "ade4_heavy_pred255": "ade4_heavy",
    "ade4_perfect": "ade4_heavy",
}  # fmt: skip
FOLDERS = {"ade4": "data/ade20k_mini/annotations/training", "coco": "data/coco_semseg_mini/masks"}


def pairs(shared: Path, case: str) -> Iterator[tuple[Any, Any]]:
    """(prediction, label) of each image of a recorded case."""
    folder = shared / FOLDERS[case[:4]]
    with np.load(shared / f"oracles/metrics/ade20k/pred_{CASES[case]}_a.npz") as recorded:
        for stem in recorded.files:
            said, path = recorded[stem], folder / f"{stem}.png"
            label = read_map(LabelMap(path, zero_ignored=not case.endswith("noreduce")))
            if case.endswith("noreduce"):
                said = said + np.uint8(1)
            elif case.endswith("pred255"):
                said = said.copy()
                said[:20, :20] = 255
            elif case.endswith("perfect"):
                said = np.where(label == 255, 0, label).astype(np.uint8)
            yield said, label


@pytest.mark.parametrize("name", recorded("segm_eval"))
def test_upops_own_metric_has_the_recorded_values(shared: Path, name: str) -> None:
    """Oracle: segm/metrics.py of the original on three pairs of maps; a class that occurs nowhere is left out."""
    oracle = Oracle(shared / "oracles" / "models" / f"{name}.npz")
    facts = oracle.facts["miou"]
    maps = [[oracle[f"miou/{what}{i}"].numpy().astype(np.uint8) for what in ("pred", "gt")] for i in range(3)]
    sums = np.sum([miou.counts(said, label, facts["n_cls"]) for said, label in maps], axis=0).astype(np.float64)[None]
    both, predicted, labelled = np.split(sums[0], 3)
    union = predicted + labelled - both
    told = oracle["miou/cat_iou"].numpy()
    assert (np.isnan(told) == (union == 0)).all()
    assert both[union > 0] / union[union > 0] == pytest.approx(told[union > 0], abs=1e-7)  # recorded in float32
    ours = {"pixel_accuracy": miou.aacc(sums), "mean_accuracy": miou.macc(sums), "mean_iou": miou.miou(sums)}
    assert {metric: float(value[0]) for metric, value in ours.items()} == pytest.approx(
        {metric: facts["result"][metric] for metric in ours}, abs=5e-3
    )


@pytest.mark.parametrize("case", CASES)
def test_real_maps_have_the_recorded_values(shared: Path, case: str) -> None:
    oracle = json.loads((shared / "oracles/metrics/ade20k/results_a.json").read_text())[case]
    classes = oracle["config"].get("num_classes", 150)
    found = np.array([miou.counts(said, label, classes) for said, label in pairs(shared, case)])
    both, predicted, labelled = np.split(found.sum(axis=0), 3)
    counted = oracle["per_class"]
    assert both.tolist() == counted["intersect"]
    assert predicted.tolist() == counted["pred"]
    assert labelled.tolist() == counted["label"]
    union = predicted + labelled - both
    assert [int((union > 0).sum()), int((labelled > 0).sum())] == [oracle["n_classes_iou"], oracle["n_classes_acc"]]
    sums = found.sum(axis=0, keepdims=True).astype(np.float64)
    ours = {"mIoU": miou.miou(sums)[0], "mAcc": miou.macc(sums)[0], "aAcc": miou.aacc(sums)[0]}
    exact = oracle["exact_int64"]
    assert ours == pytest.approx({name: exact[name] for name in ours}, abs=1e-9)
    assert ours == pytest.approx(oracle["mmseg122_unrounded"], abs=2e-5)
    assert {name: np.float32(round(v, 2)) for name, v in ours.items()} == pytest.approx(oracle["mmseg122"], abs=5e-3)
    upop = oracle["upop_unrounded"]
    assert [ours["mIoU"], ours["mAcc"], ours["aAcc"]] == pytest.approx(
        [upop["mean_iou"], upop["mean_accuracy"], upop["pixel_accuracy"]], abs=1e-9
    )
    per_image = np.mean([miou.miou(row[None].astype(np.float64))[0] for row in found])
    assert per_image == pytest.approx(oracle["mean_of_per_image_miou"], abs=1e-9)


@pytest.mark.parametrize("case", ["ade4_heavy_pred255", "coco40_present"])
def test_every_class_has_the_recorded_ratios(shared: Path, case: str) -> None:
    oracle = json.loads((shared / "oracles/metrics/ade20k/results_a.json").read_text())[case]["per_class"]
    classes = len(oracle["IoU"])
    found = sum(miou.counts(said, label, classes) for said, label in pairs(shared, case))
    for k in range(classes):  # a class on its own is a problem of one class
        one = found[[k, classes + k, 2 * classes + k]][None].astype(np.float64)
        assert miou.miou(one)[0] == pytest.approx(100 * (oracle["IoU"][k] or 0), abs=2e-5)
        assert miou.macc(one)[0] == pytest.approx(100 * (oracle["Acc"][k] or 0), abs=2e-5)


def counts(said: list[int], label: list[int], classes: int = 3) -> list[int]:
    found: list[int] = miou.counts(np.array([said], np.uint8), np.array([label], np.uint8), classes).tolist()
    return found


def test_what_counts() -> None:
    assert counts([0, 1, 1, 2], [0, 1, 2, 2]) == [1, 1, 1, 1, 2, 1, 1, 1, 2]
    assert counts([0, 1], [255, 255]) == [0] * 9  # ignored
    assert counts([255, 3], [1, 1]) == [0, 0, 0, 0, 0, 0, 0, 2, 0]  # no class's prediction, yet a labelled pixel
    assert counts([1, 3], [3, 3]) == [0, 0, 0, 0, 1, 0, 0, 0, 0]  # a number that is no class, but not ignored


def test_only_classes_that_occur_are_averaged() -> None:
    sums = np.array([[1, 0, 0, 2, 1, 0, 2, 0, 0]], dtype=np.float64)  # class 1 is predicted once, class 2 nowhere
    assert miou.miou(sums)[0] == pytest.approx(100 * (1 / 3 + 0) / 2)
    assert miou.macc(sums)[0] == 50
    assert miou.aacc(sums)[0] == 50
    assert [float(f(np.zeros((1, 9)))[0]) for f in (miou.miou, miou.macc, miou.aacc)] == [0, 0, 0]


def test_rows_do_not_see_each_other() -> None:
    draws = np.random.default_rng(0)
    label, said = draws.integers(0, 5, size=(2, 6, 40, 40), dtype=np.uint8)
    label[:3][label[:3] == 4] = 255
    table = np.array([miou.counts(p, t, 5) for p, t in zip(said, label, strict=True)], dtype=np.float64)
    for metric in (miou.miou, miou.macc, miou.aacc):
        assert metric(table).tolist() == [metric(row[None])[0] for row in table]


def test_counting_is_that_of_a_plain_loop(tmp_path: Path) -> None:
    draws = np.random.default_rng(1)
    said, label = (draws.choice([0, 1, 2, 3, 200, 255], size=(9, 7)).astype(np.uint8) for _ in range(2))
    expected = [0] * 9
    for p, t in zip(said.ravel().tolist(), label.ravel().tolist(), strict=True):
        if t != 255:
            for k in range(3):
                expected[k] += p == t == k
                expected[3 + k] += p == k
                expected[6 + k] += t == k
    assert miou.counts(said, label, 3).tolist() == expected
    Image.fromarray(label).save(tmp_path / "x.png")
    reduced = read_map(LabelMap(tmp_path / "x.png", zero_ignored=True))
    assert np.array_equal(reduced, np.where(label == 0, 255, label.astype(int) - 1))
