"""`vlbench data`: what is damaged is found, and what is intact is not blamed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.lab import WNIDS, Lab, write_toml
from vlbench.checks import data as verify
from vlbench.images.maps import LabelMap
from vlbench.mini.world import World, worlds_folder
from vlbench.plugins.table import table
from vlbench.task import Sample


def report(lab: Lab, *words: str) -> dict[str, dict[str, object]]:
    """Root -> what --json says of it."""
    return {root["name"]: root for root in json.loads(lab("data", "verify", *words, "--json").out)}


def test_where(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    (lab.folder / "elsewhere" / "coco").mkdir(parents=True)
    monkeypatch.setenv("VLBENCH_DATA", str(lab.folder / "elsewhere"))
    write_toml(lab.folder, {"imagenet": lab.data, "ade20k": Path("/no/such")})
    told = " ".join(lab("data", "where").out.split())  # how wide the columns are, the longest task name decides
    assert f"imagenet {lab.data} (imagenet)" in told
    assert f"{lab.folder / 'elsewhere' / 'coco'} (" in told
    assert "/no/such (does not exist)" in told
    assert "weights no folder" in told
    found = {row["root"]: row for row in json.loads(lab("data", "where", "--json").out)["roots"]}
    assert "vqav2" in found["coco"]["tasks"]
    assert [found[name]["there"] for name in ("imagenet", "coco", "ade20k")] == [True, True, False]


def test_an_intact_root_is_one_ok_line_with_counts(lab: Lab) -> None:
    told = lab("data", "verify", "task=imagenet", "--images")
    assert told.code == 0, told
    lines = told.out.splitlines()
    assert lines[0].startswith(f"ok       imagenet  {lab.data}: 1 task, 3 splits, ")
    assert "  imagenet/val: 6 samples, 6 images, 6 clusters" in lines


def test_a_task_without_a_root_is_a_fault_only_where_it_was_asked_for(lab: Lab) -> None:
    told = lab("data", "verify")
    assert told.code == 0, told
    assert 'add coco = "/path/to/coco" to [roots]' in told.out
    assert lab("data", "verify", "task=vqav2").code == 1


def test_a_root_that_does_not_exist(lab: Lab) -> None:
    shutil.rmtree(lab.data)
    told = lab("data", "verify")
    assert told.code == 1
    assert f"{lab.data} does not exist" in told.out


def test_what_a_task_says_is_missing(lab: Lab) -> None:
    shutil.rmtree(lab.data / "train")
    told = lab("data", "verify", "task=imagenet")
    assert told.code == 1
    assert told.out.startswith("incomplete  imagenet")
    assert "; missing: imagenet/train, imagenet/select; intact: imagenet/val" in told.out.splitlines()[0]
    assert f"{lab.data / 'train'} should hold the images" in told.out
    assert "imagenet/val: 6 samples" in told.out
    assert lab("data", "verify", "task=imagenet", "split=val").code == 0


def test_annotations_that_do_not_parse(lab: Lab) -> None:
    root = lab.folder / "coco"
    (root / "val2014").mkdir(parents=True)
    for subset in ("train2014", "val2014"):
        (root / f"v2_mscoco_{subset}_annotations.json").write_text('{"annotations": [')
        (root / f"v2_OpenEnded_mscoco_{subset}_questions.json").write_text('{"questions": []}')
    write_toml(lab.folder, {"coco": root})
    told = lab("data", "verify", "task=vqav2", "split=val")
    assert told.code == 1
    assert "v2_mscoco_val2014_annotations.json is not JSON, or cut short" in told.out


def test_images_that_do_not_decode_are_counted_and_the_first_five_named(lab: Lab) -> None:
    broken = sorted((lab.data / "train").rglob("*.png"))[:7]
    for file in broken:
        file.write_bytes(file.read_bytes()[:60])
    assert lab("data", "verify", "task=imagenet").code == 0
    told = lab("data", "verify", "task=imagenet", "--images")
    assert told.code == 1
    (line,) = [line for line in told.out.splitlines() if "do not decode" in line]
    assert line.strip().startswith("7 files do not decode: ")
    assert line.endswith("and 2 more")
    assert sum(str(file) in line for file in broken) == 5


def test_a_pipe_among_images_is_named_without_being_opened(lab: Lab) -> None:
    pipe = lab.data / "val" / WNIDS[0] / "pipe.png"
    os.mkfifo(pipe)
    told = lab("data", "verify", "task=imagenet", "suite=full")
    assert told.code == 1
    assert f"1 image of its samples is no file but a pipe, a socket or a device: {pipe}" in told.out


TASK = '''"""A task whose list names files that are not there."""

from pathlib import Path

from vlbench.images.maps import LabelMap
from vlbench.task import Sample, Task, task


@task("own", title="Own", capability="segment", metric="m", version=1, data="imagenet")
class Own(Task):
    """What it is."""

    metrics = {"m": "higher"}

    @classmethod
    def roles(cls):
        return {"train": "train", "select": "select", "report": "val"}

    def missing(self, split):
        return []

    def samples(self, split):
        folder = self.root / "val" / "n90000000"
        there = folder / "val_0.png"
        label = LabelMap(folder / ("no_map.png" if split == "val" else "val_1.png"))
        first = Sample("a", (there, folder / "gone.png"), target=label, cluster="x")
        return [first, Sample("b", (there,), cluster="x")]

    def aggregate(self, samples, scores):
        return {}
'''


def test_images_and_label_maps_of_samples_that_do_not_exist(lab: Lab) -> None:
    lab.plug("tasks/own.py", TASK)
    root = report(lab, "task=own", "split=val,train")["imagenet"]
    splits = {split["split"]: split for split in root["splits"]}  # type: ignore[union-attr]
    gone, label = (str(lab.data / "val" / WNIDS[0] / name) for name in ("gone.png", "no_map.png"))
    assert splits["val"]["problems"] == [f"2 files of its samples are not there: {gone}, {label}"]
    assert splits["train"]["problems"] == [f"1 file of its samples is not there: {gone}"]
    assert (splits["val"]["samples"], splits["val"]["images"], splits["val"]["clusters"]) == (2, 2, 1)


def test_tasks_of_one_root_are_verified_together_and_their_images_counted_once(lab: Lab) -> None:
    lab.plug("tasks/own.py", TASK)
    root = report(lab, "task=own,imagenet")["imagenet"]
    assert root["tasks"] == ["own", "imagenet"]
    assert root["images"] == 24, "all of ImageNet's, one of which is the other task's too"


def test_a_label_map_is_decoded_as_one(lab: Lab) -> None:
    """A colour picture decodes as an image and is no label map."""
    lab.plug("tasks/own.py", TASK)
    lines = lab("data", "verify", "task=own", "split=train", "--images").out
    assert "is no map of class numbers" in lines


def test_a_label_map_of_another_size_is_named(lab: Lab) -> None:
    """Oracle: the run would end at it; --images names it before, and it alone."""
    lab.plug("tasks/own.py", TASK.replace('"val_1.png"', '"map.png"'))
    folder = lab.data / "val" / WNIDS[0]
    with Image.open(folder / "val_0.png") as image:
        width, height = image.size
    for size, code in (((width, height), 0), ((width, height - 1), 1)):
        (folder / "gone.png").write_bytes((folder / "val_0.png").read_bytes())
        Image.new("L", size).save(folder / "map.png")
        told = lab("data", "verify", "task=own", "split=train", "--images")
        assert told.code == code
        assert (f"1 label map is not of the size of the image: {folder / 'map.png'}" in told.out) is bool(code)


def test_wrong_words(lab: Lab) -> None:
    assert "Did you mean 'task'?" in lab.refused("data", "verify", "tsk=imagenet")
    assert "Did you mean 'imagenet'?" in lab.refused("data", "verify", "task=imagnet")
    assert "split=vall is none of these tasks'. Did you mean 'val'?" in lab.refused(
        "data", "verify", "task=imagenet", "split=vall"
    )
    assert "should be mini or full" in lab.refused("data", "verify", "suite=tiny")


# The mini world ----------------------------------------------------------------------------------------------------


class SmallWorld(World):
    """Two pictures, a mask and a text, without a digest."""

    def build(self, root: Path, progress: object = None) -> None:
        small_world(root)


def small_world(root: Path) -> None:
    (root / "images").mkdir(parents=True)
    for number in range(2):
        pixels = np.full((16, 16, 3), 80 * number + 40, dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{number}.jpg", quality=95)
    Image.fromarray(np.eye(16, dtype=np.uint8)).save(root / "mask.png")
    (root / "list.json").write_text("[0, 1]")


@pytest.fixture
def world(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLBENCH_CACHE", str(lab.folder / "cache"))
    world = SmallWorld("imagenet", 2, lambda writer: None, "")
    monkeypatch.setattr(table("tasks").get("imagenet").load(), "mini_world", lambda: world)
    folder = worlds_folder() / "imagenet"
    small_world(folder)
    return folder


def mini_problems(lab: Lab) -> list[str]:
    (root,) = report(lab, "suite=mini", "task=imagenet").values()
    found: list[str] = root["splits"][0]["problems"]  # type: ignore[index]
    return found


def test_the_mini_world_as_it_was_made(lab: Lab, world: Path) -> None:
    told = lab("data", "verify", "suite=mini", "task=imagenet")
    assert told.code == 0, told
    assert told.out.startswith(f"ok       mini/imagenet  {world}: 3 images")
    assert [path.name for path in world.parent.iterdir()] == ["imagenet"], "the second build is gone"


def test_a_picture_that_another_libjpeg_wrote_is_the_same_one(lab: Lab, world: Path) -> None:
    """Here by another quality: other bytes, pixels within rounding."""
    file = world / "images" / "1.jpg"
    before = file.read_bytes()
    Image.open(file).save(file, quality=90)
    assert file.read_bytes() != before
    assert mini_problems(lab) == []


def test_damage_to_the_mini_world(lab: Lab, world: Path) -> None:
    (world / "images" / "0.jpg").unlink()
    Image.fromarray(np.zeros((16, 16, 3), dtype=np.uint8)).save(world / "images" / "1.jpg")
    mask = np.eye(16, dtype=np.uint8)
    mask[3, 4] = 1
    Image.fromarray(mask).save(world / "mask.png")
    (world / "stray.txt").write_text("")
    assert mini_problems(lab) == [
        "1 file is not there: images/0.jpg",
        "2 files are not what its generator makes: images/1.jpg, mask.png",
        "1 file is no part of it: stray.txt",
        f"delete {world}: it is built anew when it is needed",
    ]


def test_a_mini_world_that_is_not_built_yet_is_no_fault(lab: Lab, world: Path) -> None:
    shutil.rmtree(world)
    told = lab("data", "verify", "suite=mini", "task=imagenet")
    assert told.code == 0
    assert "not built yet" in told.out
    assert not world.exists()


def test_tasks_of_one_world_are_verified_once(lab: Lab) -> None:
    """coco_caption and coco_retrieval read one world."""
    entries = [table("tasks").get(name) for name in ("coco_caption", "coco_retrieval", "imagenet")]
    places = {world.name: tasks for world, tasks in verify._worlds(entries, [])}
    assert places == {"coco": ["coco_caption", "coco_retrieval"], "imagenet": ["imagenet"]}


def test_clusters_and_files() -> None:
    """Samples without a cluster are their own; a label map is no image."""
    label = LabelMap(Path("m.png"))
    samples = [
        Sample("a", (Path("1"), Path("2")), cluster="x"),
        Sample("b", (Path("1"),), cluster="x"),
        Sample("c", (Path("3"),), target=label),
    ]
    assert verify._clusters(samples) == 2
    assert verify._files(samples) == {
        Path("1"): None,
        Path("2"): None,
        Path("3"): None,
        Path("m.png"): (label, Path("3")),
    }
