"""The mini world: pinned pixels, official layouts, a cache that survives races."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlbench.errors import RunFailed
from vlbench.mini import world as mini
from vlbench.mini.render import label_map, object_map, render
from vlbench.mini.scenes import COLORS, RADII, SHAPES, SPLITS, Draws, Scene, Thing, salient_scene, scene
from vlbench.mini.worlds import ade20k, imagenet, karpathy, nlvr2, vqav2
from vlbench.mini.writer import Writer

# Made once and read by eye on a contact sheet; they change only with WORLD_VERSION.
PINNED_PIXELS = {
    "scene": "efb09e7607ff3e06bdbc87f1c553b2f420c86b35186e1ea2bf692b14db85c625",
    "salient": "6565b23902a6f5ac617b885072a01790ff6266197efa4a4d662e6caf4f8594d6",
}
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


def pixel_digest(scenes: list[Scene]) -> str:
    return hashlib.sha256(b"".join(render(each).tobytes() for each in scenes)).hexdigest()


def test_pixels_are_pinned() -> None:
    assert pixel_digest([scene("val", index) for index in range(40)]) == PINNED_PIXELS["scene"]
    salient = [salient_scene("val", index, *looks) for index, looks in enumerate(product(SHAPES, COLORS))]
    assert pixel_digest(salient) == PINNED_PIXELS["salient"]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(mini.DIGESTS))
def test_whole_world_has_the_pinned_digest(name: str, tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    mini.BUILDERS[name](tmp_path, lambda done, total: reports.append((done, total)))  # raises on a mismatch
    assert (tmp_path / mini.MARKER).read_text().strip() == mini.world_digest(name)
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
        "PYTHONPATH": str(Path(mini.__file__).parents[2]),
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


def test_scenes_are_independent_of_order() -> None:
    backwards = [scene("train", index) for index in reversed(range(30))]
    assert backwards[::-1] == [scene("train", index) for index in range(30)]
    assert scene("train", 3) != scene("val", 3)


def test_draws_follow_their_weights() -> None:
    draws = Draws(99)
    picks = [draws.weighted("abc", (1, 0, 3)) for _ in range(4000)]
    assert picks.count("b") == 0
    assert picks.count("c") / len(picks) == pytest.approx(0.75, abs=0.03)
    assert {draws.between(-1, 1) for _ in range(100)} == {-1, 0, 1}


def visible_share(picture: Scene, number: int, thing: Thing) -> float:
    """Pixels of an object that no other covers, over those it has when alone."""
    alone = Scene((thing,), picture.ground)
    return float((object_map(picture) == number).sum() / (object_map(alone) == 1).sum())


def test_every_object_stays_visible() -> None:
    for index in range(200):
        picture = scene("train", index)
        assert 2 <= len(picture.objects) <= 5
        for number, thing in enumerate(picture.objects, start=1):
            assert thing.radius in RADII[thing.size]
            assert visible_share(picture, number, thing) > 0.8


def test_salient_object_is_the_only_large_one_and_shows() -> None:
    for index, (shape, color) in enumerate(imagenet.CLASSES):
        picture = salient_scene("train", index, shape, color)
        large = [thing for thing in picture.objects if thing.size == "large"]
        assert [(thing.shape, thing.color) for thing in large] == [(shape, color)]
        assert visible_share(picture, 1, large[0]) > 0.7


@pytest.mark.parametrize(("shape", "share"), [("circle", np.pi), ("square", 4 * 0.86**2), ("cross", 2.2576)])
@pytest.mark.parametrize("tilt", [-1, 0, 1])
def test_stencils_have_the_area_of_their_shape(shape: str, share: float, tilt: int) -> None:
    thing = Thing(shape, "red", "large", 32, 32, 11, tilt, (255, 0, 0))
    pixels = (object_map(Scene((thing,), scene("train", 0).ground)) == 1).sum()
    assert pixels == pytest.approx(share * 11**2, rel=0.04)


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
    assert scene("train", 5700, "coco") != scene("train", 0, "coco")


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
                    picture = scene(scenes, 8 * int(number) + 2 * int(pair) + side, "nlvr2")
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
        picture = scene("train", index, "ade20k")
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


def test_label_map_leaves_out_what_is_covered() -> None:
    ground = scene("train", 0).ground
    below = Thing("square", "red", "large", 28, 28, 11, 0, (255, 0, 0))
    above = Thing("circle", "blue", "large", 36, 28, 11, 0, (0, 0, 255))
    labels = label_map(Scene((below, above), ground), 9, (3, 4))
    assert labels[28, 20:24].tolist() == [3] * 4
    assert labels[28, 30:40].tolist() == [4] * 10
    assert labels[0, 0] == 9
    assert 0 in labels[20, 24:36]  # where the rim of the one crosses the other


def test_no_two_worlds_share_a_picture() -> None:
    streams = ("scene", "coco", "flickr30k", "nlvr2", "ade20k")
    keys = list(product(streams, SPLITS, range(15)))
    assert len({render(scene(split, index, stream)).tobytes() for stream, split, index in keys}) == len(keys)


def test_every_task_has_a_world() -> None:
    assert set(mini.WORLDS.values()) == set(mini.DIGESTS) == set(mini.BUILDERS)
    assert mini.world_digest("coco_caption") == mini.world_digest("coco_retrieval") == mini.DIGESTS["coco"]


def test_tasks_share_a_world(tiny_build: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mini.DIGESTS, "coco", mini.DIGESTS["vqav2"])
    monkeypatch.setitem(mini.BUILDERS, "coco", mini.BUILDERS["vqav2"])
    assert mini.mini_root("coco_caption") == mini.mini_root("coco_retrieval") == mini.mini_root("coco")
    assert mini.mini_root("coco").name == "coco"
    assert len(tiny_build) == 1


@pytest.fixture
def tiny_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """A cache of its own and a "vqav2" of one file; the list grows by a folder a build."""
    built: list[Path] = []

    def build(root: Path, progress: mini.Progress | None = None) -> None:
        built.append(root)
        root.mkdir()
        (root / "payload").write_text("whole")
        (root / mini.MARKER).write_text(mini.DIGESTS["vqav2"])

    monkeypatch.setenv("VLBENCH_CACHE", str(tmp_path))
    monkeypatch.setitem(mini.BUILDERS, "vqav2", build)
    return built


def test_second_use_reads_the_cache(tiny_build: list[Path], tmp_path: Path) -> None:
    root = mini.mini_root("vqav2")
    assert root == mini.mini_root("vqav2") == tmp_path / f"mini-v{mini.WORLD_VERSION}" / "vqav2"
    assert len(tiny_build) == 1
    assert [entry.name for entry in root.parent.iterdir()] == ["vqav2"]


@pytest.mark.parametrize("damage", ["missing", "other digest", "empty"])
def test_folder_without_its_marker_is_rebuilt(damage: str, tiny_build: list[Path]) -> None:
    marker = mini.mini_root("vqav2") / mini.MARKER
    (marker.parent / "stray").write_text("left by something else")
    if damage == "missing":
        marker.unlink()
    else:
        marker.write_text("" if damage == "empty" else "0" * 64)
    root = mini.mini_root("vqav2")
    assert len(tiny_build) == 2
    assert sorted(entry.name for entry in root.iterdir()) == [mini.MARKER, "payload"]
    assert [entry.name for entry in root.parent.iterdir()] == ["vqav2"]


@pytest.mark.parametrize("damaged", [False, True])
def test_racing_builds_leave_one_folder(damaged: bool, tiny_build: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    if damaged:
        (mini.mini_root("vqav2") / mini.MARKER).unlink()
        tiny_build.clear()
    meeting = threading.Barrier(4)
    build_alone = mini.BUILDERS["vqav2"]

    def build_together(root: Path, progress: mini.Progress | None = None) -> None:
        build_alone(root, progress)
        meeting.wait(timeout=10)  # all four have built before any publishes

    monkeypatch.setitem(mini.BUILDERS, "vqav2", build_together)
    roots: list[Path] = []
    threads = [threading.Thread(target=lambda: roots.append(mini.mini_root("vqav2"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(roots) == len(tiny_build) == 4
    assert len(set(roots)) == 1
    assert (roots[0] / "payload").read_text() == "whole"
    assert [entry.name for entry in roots[0].parent.iterdir()] == ["vqav2"]


def test_changed_generator_is_refused_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(imagenet, "SPLITS", {"train": 40, "val": 40})
    with pytest.raises(RunFailed, match=r"came out with digest [0-9a-f]{64}, expected " + mini.DIGESTS["imagenet"]):
        mini.mini_root("imagenet")
    assert list((tmp_path / f"mini-v{mini.WORLD_VERSION}").iterdir()) == []


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tiny_build: list[Path]) -> None:
    here = Path(os.environ["VLBENCH_CACHE"])
    monkeypatch.delenv("VLBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "xdg"))
    assert mini.mini_root("vqav2").parent.parent == here / "xdg" / "vlbench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(here / "home"))
    assert mini.mini_root("vqav2").parent.parent == here / "home" / ".cache" / "vlbench"
