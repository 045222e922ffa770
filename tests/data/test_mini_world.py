"""The mini world: pinned pixels, official layouts, a cache that survives races."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlbench.data import mini
from vlbench.data.render import object_map, render
from vlbench.data.scenes import COLORS, RADII, SHAPES, Draws, Scene, Thing, salient_scene, scene
from vlbench.errors import RunFailed

# Made once and read by eye on a contact sheet; they change only with WORLD_VERSION.
PINNED_PIXELS = {
    "scene": "efb09e7607ff3e06bdbc87f1c553b2f420c86b35186e1ea2bf692b14db85c625",
    "salient": "6565b23902a6f5ac617b885072a01790ff6266197efa4a4d662e6caf4f8594d6",
}
PINNED_SMALL_VQA = "7b3fa0bb81120ec30f90c80caafea937d970518b614ceecbaf00ba160953a5ba"
SMALL_TRAIN = mini.VqaSplit("train", "train2014", "train2014", 8, 12, first_image_id=1)
SMALL_TEST = mini.VqaSplit("test", "test-dev2015", "test2015", 5, 2, first_image_id=20_001, annotated=False)


def small_vqa_digest(root: Path) -> str:
    writer = mini.Writer(root, 13)
    for split in (SMALL_TRAIN, SMALL_TEST):
        mini.write_vqa_split(writer, split)
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
        "import sys; from pathlib import Path; from vlbench.data import mini\n"
        "writer = mini.Writer(Path(sys.argv[1]), 13)\n"
        "for split in eval(sys.argv[2], vars(mini)): mini.write_vqa_split(writer, split)\n"
        "print(writer.digest()); assert 'torch' not in sys.modules"
    )
    environment = os.environ | {
        "PYTHONHASHSEED": hash_seed,
        "PYTHONPATH": str(Path(mini.__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), repr((SMALL_TRAIN, SMALL_TEST))],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == PINNED_SMALL_VQA


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
    for index, (shape, color) in enumerate(mini.IMAGENET_CLASSES):
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
    assert small_vqa_digest(tmp_path) == PINNED_SMALL_VQA
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
    small_vqa_digest(tmp_path)
    questions = json.loads((tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json").read_text())
    assert len(questions["questions"]) == 10
    assert (tmp_path / "test2015" / "COCO_test2015_000000020001.jpg").is_file()
    assert not list(tmp_path.glob("*test*annotations*"))


def test_imagenet_layout(tmp_path: Path) -> None:
    writer = mini.Writer(tmp_path, 160)
    mini.write_imagenet_split(writer, "train", 80)
    mini.write_imagenet_split(writer, "val", 80)
    mapping = (tmp_path / "LOC_synset_mapping.txt").read_text().splitlines()
    assert mapping[0] == "n90000000 red circle"
    assert len(mapping) == len({line.split(" ", 1)[1] for line in mapping}) == 40
    for split in ("train", "val"):
        folders = sorted(folder.name for folder in (tmp_path / split).iterdir())
        assert folders == [line.split()[0] for line in mapping]
        assert all(len(list((tmp_path / split / folder).iterdir())) == 2 for folder in folders)
    assert (tmp_path / "train" / "n90000001" / "n90000001_41.JPEG").is_file()
    assert (tmp_path / "val" / "n90000001" / "ILSVRC2012_val_00000042.JPEG").is_file()


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
    monkeypatch.setattr(mini, "IMAGENET_IMAGES", {"train": 40, "val": 40})
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
