"""The official layout, made here and of real label maps: 4 of ADE20K, 100 of COCO (../shared/data)."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from tests.beside import there
from vlbench.errors import UserError
from vlbench.images.maps import LabelMap, pack_map
from vlbench.records.statistics import bootstrap
from vlbench.task import digest_samples, held_out

module = importlib.import_module("vlbench.tasks.ade20k")
ADE20K, ADE20KOptions = module.ADE20K, module.ADE20KOptions

CHALLENGE = "ADEChallengeData2016"
HEADER = "Idx\tRatio\tTrain\tVal\tName"


def make(root: Path, **options: Any) -> Any:
    return ADE20K(root, ADE20KOptions(**options))


def write_pair(root: Path, split: str, name: str, label: Any) -> None:
    for kind in ("images", "annotations"):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*label.shape, 3), np.uint8)).save(root / "images" / split / f"{name}.jpg")
    Image.fromarray(label.astype(np.uint8)).save(root / "annotations" / split / f"{name}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """60 training and 3 validation images with labels 0 to 3, in ADEChallengeData2016/."""
    base, draws = tmp_path / CHALLENGE, np.random.default_rng(0)
    for n in range(60):
        write_pair(base, "training", f"ADE_train_{n:08d}", draws.integers(0, 4, size=(2, 3)))
    for n in (3, 1, 2):
        write_pair(base, "validation", f"ADE_val_{n:08d}", draws.integers(0, 4, size=(4 + n, 5)))
    (base / "objectInfo150.txt").write_text(f"{HEADER}\n1\t.5\t1\t1\twall\n2\t.3\t1\t1\tsky\n3\t.2\t1\t1\ttree, palm\n")
    return tmp_path


def real_root(folder: Path, images: Path, labels: Path, suffix: str = ".png") -> Path:
    """A root whose validation split are the label maps of a folder."""
    for kind in ("images", "annotations"):
        (folder / kind / "validation").mkdir(parents=True)
    for path in labels.glob("*.png"):
        (folder / "annotations/validation" / path.name).symlink_to(path)
        (folder / "images/validation" / f"{path.stem}.jpg").symlink_to(images / f"{path.stem}.jpg")
    return folder


@pytest.mark.parametrize("case", ["ade4_light", "ade4_heavy", "ade4_present", "coco100"])
def test_real_maps_go_through_the_task(shared: Path, tmp_path: Path, case: str) -> None:
    data = there(shared / "data")
    if case == "coco100":
        images, labels = data / "coco_val2017_mini/images", data / "coco_semseg_mini/masks"
        rows = "".join(f"{n}\t0\t0\t0\tclass {n}\n" for n in range(1, 201))
        (tmp_path / "objectInfo150.txt").write_text(f"{HEADER}\n{rows}")
    else:
        images, labels = data / "ade20k_mini/images/training", data / "ade20k_mini/annotations/training"
    task = make(real_root(tmp_path, images, labels))
    samples = task.samples("validation")
    with np.load(shared / f"oracles/metrics/ade20k/pred_{case}_a.npz") as recorded:
        said = [{"map": pack_map(recorded[sample.id])} for sample in samples]
    scores = json.loads(json.dumps(task.scores(samples, said)))
    oracle = json.loads((shared / "oracles/metrics/ade20k/results_a.json").read_text())[case]
    exact = oracle["exact_int64"]
    found = task.aggregate(samples, scores)
    assert found == pytest.approx({"miou": exact["mIoU"], "macc": exact["mAcc"], "aacc": exact["aAcc"]}, abs=1e-9)
    assert len(samples) == oracle["config"]["files"]
    per_class = oracle["per_class"]
    assert np.sum(scores, axis=0).tolist() == [*per_class["intersect"], *per_class["pred"], *per_class["label"]]
    spread = bootstrap(scores, None, [s.cluster for s in samples], task.corpus_metric, B=200)
    assert spread.value == found["miou"]
    assert spread.clusters == len(samples)


def test_the_real_training_folder_as_it_is(shared: Path) -> None:
    task = make(there(shared / "data/ade20k_mini"))
    assert task.classes == 150
    assert task.missing("training") == []
    samples = task.samples("training") + task.samples("select")
    assert sorted(s.id for s in samples) == [
        "ADE_train_00000036", "ADE_train_00016869", "ADE_train_00016900", "ADE_train_00016964",
    ]  # fmt: skip
    assert all(s.target.zero_ignored and s.target.path.is_file() and s.images[0].suffix == ".jpg" for s in samples)
    with pytest.raises(UserError, match="colour picture, as in the full ADE20K release"):
        module._refuse_full_release(shared / "data/ade20k_mini/full_images/ADE_train_00016869_seg.png")


def test_layout(root: Path) -> None:
    task = make(root)
    assert task.missing("validation") == []
    samples = task.samples("validation")
    base = root / CHALLENGE
    assert [s.id for s in samples] == ["ADE_val_00000001", "ADE_val_00000002", "ADE_val_00000003"]
    assert samples[0].images == (base / "images/validation/ADE_val_00000001.jpg",)
    assert samples[0].target == LabelMap(base / "annotations/validation/ADE_val_00000001.png", zero_ignored=True)
    assert samples[0].cluster == ""
    assert task.classes == 3
    assert make(base).classes == 3
    assert digest_samples(make(base).samples("validation")) == digest_samples(samples)
    moved = base.rename(root / "elsewhere")
    assert digest_samples(make(moved).samples("validation")) == digest_samples(samples)
    (moved / "objectInfo150.txt").unlink()
    assert make(moved).classes == 150


def test_select_is_cut_from_training(root: Path) -> None:
    task = make(root)
    train, select = ({s.id for s in task.samples(split)} for split in ("training", "select"))
    assert len(train) + len(select) == 60
    assert select
    assert not train & select
    assert all(held_out(name, 5) for name in select)
    assert task.roles() == {"train": "training", "select": "select", "report": "validation"}
    assert task.report_splits() == ("validation", "select")
    with pytest.raises(UserError, match=r"no split 'valid'. Did you mean 'validation'"):
        task.samples("valid")


def test_a_perfect_and_a_partly_wrong_prediction(root: Path) -> None:
    task = make(root)
    samples = task.samples("validation")
    labels = [np.asarray(Image.open(s.target.path)) for s in samples]
    perfect = [{"map": pack_map(np.where(label == 0, 7, label - 1).astype(np.uint8))} for label in labels]
    assert task.aggregate(samples, task.scores(samples, perfect)) == {"miou": 100, "macc": 100, "aacc": 100}
    first = labels[0]
    said = np.zeros_like(first)
    score = task.score(samples[0], {"map": pack_map(said)})
    known = [int((first == n).sum()) for n in (1, 2, 3)]
    assert score == [known[0], 0, 0, sum(known), 0, 0, *known]
    assert task.aggregate(samples[:1], [score]) == pytest.approx(
        {"miou": 100 * known[0] / sum(known) / 3, "macc": 100 / 3, "aacc": 100 * known[0] / sum(known)}
    )


def test_settings_and_options() -> None:
    task = make(Path("nowhere"))
    assert task.settings("validation") == {
        "window": None, "stride": None, "scales": [1.0], "flip": False,
        "blind": False, "perturb": "", "perturb_seed": 0,
    }  # fmt: skip
    given = make(Path("nowhere"), window="512", stride="480", scales="0.5,0.75, 1", flip="true")
    assert given.settings("select") == {
        "window": 512,
        "stride": 480,
        "scales": [0.5, 0.75, 1.0],
        "flip": True,
        "blind": False,
        "perturb": "",
        "perturb_seed": 0,
    }
    assert make(Path("nowhere"), scales=[2]).options.scales == [2.0]
    assert make(Path("nowhere"), scales="0.5+1.75").options.scales == [0.5, 1.75]
    for wrong in (
        {"window": 0}, {"stride": 0}, {"scales": ""}, {"scales": []}, {"scales": "1,x"}, {"scales": "-1"},
        {"flip": "perhaps"}, {"window": 32, "stride": 33}, {"sliding": True},
    ):  # fmt: skip
        with pytest.raises(ValidationError):
            ADE20KOptions(**wrong)
    assert ADE20KOptions(window=32, stride=32).window == 32


def test_missing_names_each_folder(tmp_path: Path) -> None:
    sentences = make(tmp_path).missing("select")
    folders = [tmp_path / "images/training", tmp_path / "annotations/training"]
    assert [str(f) in text for f, text in zip(folders, sentences, strict=True)] == [True, True]
    with pytest.raises(UserError, match="cannot be read"):
        make(tmp_path).samples("select")
    for folder in folders:
        folder.mkdir(parents=True)
    assert make(tmp_path).missing("select") == []
    with pytest.raises(UserError, match="images/training holds no images"):
        make(tmp_path).samples("training")


def test_images_and_label_maps_come_in_pairs(root: Path) -> None:
    base = root / CHALLENGE
    (base / "images/validation/ADE_val_00000002.jpg").unlink()
    (base / "images/validation/._ADE_val_00000002.jpg").touch()
    with pytest.raises(UserError, match=r"images/validation lacks the images of label maps: ADE_val_00000002\."):
        make(root).samples("validation")
    (base / "annotations/validation/ADE_val_00000002.png").unlink()
    (base / "annotations/validation/ADE_val_00000003.png").unlink()
    with pytest.raises(UserError, match=r"annotations/validation lacks the label maps of images: ADE_val_00000003\."):
        make(root).samples("validation")
    (base / "images/validation/ADE_val_00000003.jpg").unlink()
    assert [s.id for s in make(root).samples("validation")] == ["ADE_val_00000001"]
    (base / "images/validation/ADE_val_00000001.png").touch()
    with pytest.raises(UserError, match="has ADE_val_00000001 twice"):
        make(root).samples("validation")


def test_label_maps_of_the_full_release_are_refused(root: Path) -> None:
    path = root / CHALLENGE / "annotations/validation/ADE_val_00000001.png"
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(path)
    with pytest.raises(UserError, match=r"ADE_val_00000001\.png is a colour picture.*use the label maps of ADEChall"):
        make(root).samples("validation")


def test_a_label_map_of_another_size_is_refused(root: Path) -> None:
    task = make(root)
    sample = task.samples("validation")[2]
    for shape in ((4, 6), (5, 7)):
        sizes = f"7 x 5 and {shape[0]} x {shape[1]} pixels"
        with pytest.raises(UserError, match=rf"00000003\.png and .*00000003\.jpg are of {sizes}"):
            task.score(sample, {"map": pack_map(np.zeros(shape, np.uint8))})


def test_a_damaged_label_map_is_named_where_it_is_scored(root: Path) -> None:
    task = make(root)
    path = root / CHALLENGE / "annotations/validation/ADE_val_00000001.png"
    path.write_bytes(b"no picture")
    sample = task.samples("validation")[0]
    with pytest.raises(OSError, match=r"ADE_val_00000001\.png does not decode"):
        task.score(sample, {"map": pack_map(np.zeros((5, 5), np.uint8))})


@pytest.mark.parametrize("rows", ["", "1\tx\n3\ty\n", "0\tx\n", "x\ty\n", "".join(f"{n}\tx\n" for n in range(1, 257))])
def test_a_wrong_class_list_is_refused(root: Path, rows: str) -> None:
    (root / CHALLENGE / "objectInfo150.txt").write_text(f"{HEADER}\n{rows}")
    with pytest.raises(UserError, match=r"objectInfo150\.txt"):
        _ = make(root).classes
