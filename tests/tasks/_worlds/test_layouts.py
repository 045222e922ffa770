"""The mini worlds of tasks: pinned digests of small ones and of the whole ones, and what the official layouts hold."""

import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vlbench
from vlbench.mini.render import object_map, render
from vlbench.mini.scenes import COLORS, SHAPES, Scene, scene
from vlbench.mini.world import MARKER, World
from vlbench.mini.writer import Writer

ade20k: Any = importlib.import_module("vlbench.tasks._worlds.ade20k")
imagenet: Any = importlib.import_module("vlbench.tasks._worlds.imagenet")
karpathy: Any = importlib.import_module("vlbench.tasks._worlds.karpathy")
nlvr2: Any = importlib.import_module("vlbench.tasks._worlds.nlvr2")
vqav2: Any = importlib.import_module("vlbench.tasks._worlds.vqav2")
# Of every file in tasks/_worlds; read without the tasks, which bring torch.
FILES = sorted(Path(vlbench.__file__).parents[1].joinpath("tasks", "_worlds").glob("[a-z]*.py"))
MODULES = [importlib.import_module(f"vlbench.tasks._worlds.{file.stem}") for file in FILES]
WORLDS = {w.name: w for module in MODULES for w in vars(module).values() if isinstance(w, World)}
SMALL_TRAIN = vqav2.VqaSplit("train", "train2014", "train2014", 8, 12, first_image_id=1)
SMALL_TEST = vqav2.VqaSplit("test", "test-dev2015", "test2015", 5, 2, first_image_id=20_001, annotated=False)
SMALL_COCO = (
    karpathy.CaptionSplit("test", "val2014", 6, first_image_id=20_001),
    karpathy.CaptionSplit("restval", "val2014", 2, first_image_id=40_001, scenes="train", first=5700),
    karpathy.CaptionSplit("train", "train2014", 4, first_image_id=1),
)
SMALL_FLICKR = (karpathy.CaptionSplit("test", "flickr30k-images", 7, first_image_id=3_000_000_001),)
SMALL_NLVR = (nlvr2.NlvrSplit("train", "train", 12, 3), nlvr2.NlvrSplit("dev", "val", 2, 2))
SMALL_ADE = (ade20k.AdeSplit("training", "ADE_train", "train", 12), ade20k.AdeSplit("validation", "ADE_val", "val", 5))


def write_small_vqa(writer: Writer) -> None:
    for split in (SMALL_TRAIN, SMALL_TEST):
        vqav2.write_split(writer, split)


def write_small_nlvr(writer: Writer) -> None:
    for split in SMALL_NLVR:
        nlvr2.write_split(writer, split)


# The start of each world, and its digest: they change only with WORLD_VERSION.
SMALL: dict[str, tuple[Callable[[Writer], None], str]] = {
    "vqav2": (write_small_vqa, "7b3fa0bb81120ec30f90c80caafea937d970518b614ceecbaf00ba160953a5ba"),
    "coco": (
        lambda writer: karpathy.write_splits(writer, "coco", SMALL_COCO),
        "65853740e0c612a96355a431994d41ee640beef5a9ab7f7598e45ec0644738be",
    ),
    "flickr30k": (
        lambda writer: karpathy.write_splits(writer, "flickr30k", SMALL_FLICKR),
        "7f3571a7f576ea4f6d5deccae723dcf249e8ce59d741089b7bf5a2266aab393a",
    ),
    "nlvr2": (write_small_nlvr, "8dc3e73775c0d8984031915479d9f66c6cadf500e052def292be0a73550f65b2"),
    "ade20k": (
        lambda writer: ade20k.write_splits(writer, SMALL_ADE),
        "ee2f9ee3c96edf7adb80a0e236976eacd2a97328dbec316544cf86a7e25832e2",
    ),
}


def small_digest(world: str, root: Path) -> str:
    writer = Writer(root, 1)
    SMALL[world][0](writer)
    return writer.digest()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WORLDS))
def test_whole_world_has_the_pinned_digest(name: str, tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    WORLDS[name].build(tmp_path, lambda done, total: reports.append((done, total)))  # raises on a mismatch
    assert (tmp_path / MARKER).read_text().strip() == WORLDS[name].digest
    assert reports[-1][0] == reports[-1][1]
    assert all(earlier < later for (earlier, _), (later, _) in pairwise(reports))


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_build_does_not_depend_on_the_hash_seed(hash_seed: str, tmp_path: Path) -> None:
    code = (
        "import importlib.util, sys; from pathlib import Path\n"
        "spec = importlib.util.spec_from_file_location('small', sys.argv[1])\n"
        "small = importlib.util.module_from_spec(spec); sys.modules['small'] = small; spec.loader.exec_module(small)\n"
        "for world in small.SMALL:\n"
        "    (Path(sys.argv[2]) / world).mkdir()\n"
        "    print(world, small.small_digest(world, Path(sys.argv[2]) / world))\n"
        "assert 'torch' not in sys.modules"
    )
    environment = os.environ | {
        "PYTHONHASHSEED": hash_seed,
        "PYTHONPATH": str(Path(vlbench.__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, __file__, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert dict(line.split() for line in done.stdout.splitlines()) == {name: pin for name, (_, pin) in SMALL.items()}


def test_vqav2_layout(tmp_path: Path) -> None:
    small_digest("vqav2", tmp_path)
    questions = json.loads((tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json").read_text())
    annotations = json.loads((tmp_path / "v2_mscoco_train2014_annotations.json").read_text())
    header = {"info", "license", "task_type", "data_type", "data_subtype"}
    assert set(questions) == header | {"questions"}
    assert set(annotations) == header | {"annotations"}
    assert (questions["task_type"], questions["data_type"]) == ("Open-Ended", "mscoco")
    assert questions["data_subtype"] == "train2014"
    ids = [row["question_id"] for row in questions["questions"]]
    assert ids == [image * 1000 + k for image in range(1, 9) for k in range(12)]
    assert ids == [row["question_id"] for row in annotations["annotations"]]
    for row in annotations["annotations"]:
        assert row["question_id"] // 1000 == row["image_id"]
        assert [human["answer_id"] for human in row["answers"]] == list(range(1, 11))
        assert {human["answer_confidence"] for human in row["answers"]} <= {"yes", "maybe"}
    with Image.open(tmp_path / "train2014" / "COCO_train2014_000000000008.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 64))
        error = np.abs(np.asarray(image).astype(int) - render(scene("train", 7)))
    assert error.mean() < 3  # JPEG at quality 95 without chroma subsampling


def test_test_split_has_no_annotations(tmp_path: Path) -> None:
    small_digest("vqav2", tmp_path)
    questions = json.loads((tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json").read_text())
    assert len(questions["questions"]) == 10
    assert (tmp_path / "test2015" / "COCO_test2015_000000020001.jpg").is_file()
    assert not list(tmp_path.glob("*test*annotations*"))


def test_imagenet_layout(tmp_path: Path) -> None:
    writer = Writer(tmp_path, 160)
    imagenet.write_split(writer, "train", 80)
    imagenet.write_split(writer, "val", 80)
    mapping = (tmp_path / "LOC_synset_mapping.txt").read_text().splitlines()
    assert mapping[0] == "n90000000 red circle"
    assert len(mapping) == len({line.split(" ", 1)[1] for line in mapping}) == 40
    for split in ("train", "val"):
        folders = sorted(folder.name for folder in (tmp_path / split).iterdir())
        assert folders == [line.split()[0] for line in mapping]
        assert all(len(list((tmp_path / split / folder).iterdir())) == 2 for folder in folders)
    assert (tmp_path / "train" / "n90000001" / "n90000001_41.JPEG").is_file()
    assert (tmp_path / "val" / "n90000001" / "ILSVRC2012_val_00000042.JPEG").is_file()


def test_coco_layout(tmp_path: Path) -> None:
    small_digest("coco", tmp_path)
    content = json.loads((tmp_path / "dataset_coco.json").read_text())
    assert content["dataset"] == "coco"
    rows = content["images"]
    assert Counter(row["split"] for row in rows) == {"test": 6, "restval": 2, "train": 4}
    assert {(row["split"], row["filepath"]) for row in rows} == {
        ("test", "val2014"), ("restval", "val2014"), ("train", "train2014"),
    }  # fmt: skip
    assert [len(row["sentences"]) for row in rows] == [6, 5, 5, 5, 5, 5, 5, 5, 6, 5, 5, 5]
    check_karpathy(rows)
    for row in rows:
        assert row["filename"] == f"COCO_{row['filepath']}_{row['cocoid']:012d}.jpg"
        with Image.open(tmp_path / row["filepath"] / row["filename"]) as image:
            assert (image.format, image.size) == ("JPEG", (64, 64))
    assert scene("train", 5700, 4) != scene("train", 0, 4)


def test_flickr30k_layout(tmp_path: Path) -> None:
    small_digest("flickr30k", tmp_path)
    content = json.loads((tmp_path / "dataset_flickr30k.json").read_text())
    assert content["dataset"] == "flickr30k"
    rows = content["images"]
    check_karpathy(rows)
    for row in rows:
        assert sorted(row) == ["filename", "imgid", "sentences", "sentids", "split"]
        assert row["filename"].removesuffix(".jpg").isdigit()
        assert (tmp_path / "flickr30k-images" / row["filename"]).is_file()


def check_karpathy(rows: list[dict]) -> None:
    """What Karpathy's files have: running numbers, and words without capitals and punctuation."""
    assert [row["imgid"] for row in rows] == list(range(len(rows)))
    sentences = [sentence for row in rows for sentence in row["sentences"]]
    assert [sentence["sentid"] for sentence in sentences] == list(range(len(sentences)))
    assert [number for row in rows for number in row["sentids"]] == list(range(len(sentences)))
    for row in rows:
        for sentence in row["sentences"]:
            assert sentence["imgid"] == row["imgid"]
            assert " ".join(sentence["tokens"]) == sentence["raw"].lower().replace(",", "").removesuffix(".")


def test_nlvr2_layout(tmp_path: Path) -> None:
    small_digest("nlvr2", tmp_path)
    official = {"validation", "sentence", "left_url", "writer", "label", "right_url", "synset", "query", "identifier"}
    added = {"train": "directory", "dev": "extra_validations"}
    for split, scenes, sets, sentences in (("train", "train", 12, 3), ("dev", "val", 2, 2)):
        rows = [json.loads(line) for line in (tmp_path / "data" / f"{split}.json").read_text().splitlines()]
        assert len(rows) == len({row["identifier"] for row in rows}) == 4 * sets * sentences
        labels: dict[tuple[str, str], list[str]] = {}
        for row in rows:
            assert set(row) == official | {added[split]}
            name, number, pair, sentence = row["identifier"].split("-")
            assert name == split
            labels.setdefault((number, sentence), []).append(row["label"])
            folder = tmp_path / "images" / split / (str(row["directory"]) if split == "train" else "")
            for side, url in enumerate((row["left_url"], row["right_url"])):
                file = f"{split}-{number}-{pair}-img{side}.png"
                assert url.endswith(file)
                with Image.open(folder / file) as image:
                    assert image.format == "PNG"
                    picture = scene(scenes, 8 * int(number) + 2 * int(pair) + side, nlvr2.STREAM)
                    assert (np.asarray(image) == render(picture)).all()
        assert all(sorted(each) == ["False", "False", "True", "True"] for each in labels.values())
    assert sorted(folder.name for folder in (tmp_path / "images" / "train").iterdir()) == list("0123456789")


def test_ade20k_layout(tmp_path: Path) -> None:
    small_digest("ade20k", tmp_path)
    shown: dict[str, Counter[int]] = {"training": Counter(), "validation": Counter()}
    sizes = set()
    for split, prefix, images in (("training", "ADE_train", 12), ("validation", "ADE_val", 5)):
        for number in range(1, images + 1):
            name = f"{prefix}_{number:08d}"
            with (
                Image.open(tmp_path / "images" / split / f"{name}.jpg") as image,
                Image.open(tmp_path / "annotations" / split / f"{name}.png") as labels,
            ):
                assert (image.format, image.mode) == ("JPEG", "RGB")
                assert (labels.format, labels.mode) == ("PNG", "L")
                assert image.size == labels.size
                sizes.add(image.size)
                values = set(np.unique(np.asarray(labels)).tolist())
            assert {0, 1} < values <= set(range(42))
            shown[split].update(values)
    assert sizes == {(64, 64), (128, 64), (64, 128)}
    header, *table = [line.split("\t") for line in (tmp_path / "objectInfo150.txt").read_text().splitlines()]
    assert header == ["Idx", "Ratio", "Train", "Val", "Stuff", "Name"]
    assert [row[0] for row in table] == [str(number) for number in range(1, 42)]
    assert (table[0][5], table[1][5], table[41 - 1][5]) == ("ground", "red circle", "black cross")
    assert [row[4] for row in table] == ["1"] + ["0"] * 40
    assert sum(float(row[1]) for row in table) == pytest.approx(1, abs=0.002)
    for row in table:
        assert [int(row[2]), int(row[3])] == [shown[split][int(row[0])] for split in ("training", "validation")]


def test_maps_agree_with_the_pixels() -> None:
    """Whole pixels of an object have its colour and those of the ground are as without objects: what is left is rim."""
    for index in range(60):
        picture = scene("train", index, ade20k.STREAM)
        labels = ade20k.labels_of(picture)
        pixels, owners = render(picture), object_map(picture)
        bare = render(Scene((), picture.ground))
        assert (pixels[labels == 1] == bare[labels == 1]).all()
        assert (owners[labels == 1] == 0).all()
        for number, thing in enumerate(picture.objects, start=1):
            label = 2 + [*product(SHAPES, COLORS)].index((thing.shape, thing.color))
            own = (owners == number) & (labels > 0)
            assert (labels[own] == label).all()
            assert (pixels[own] == thing.rgb).all()
            assert own.sum() > 20
        rim = labels == 0
        edges = np.zeros_like(rim)  # within a pixel of where two owners meet
        padded = np.pad(owners, 1, mode="edge")
        for down, right in product(range(3), repeat=2):
            edges |= padded[down : down + 64, right : right + 64] != owners
        assert (edges | ~rim).all()
        assert not ((labels > 1) & (owners == 0)).any()
