"""A stranger's task brings its mini world: suite=mini runs it as it runs a built-in's. Oracles: the trained deit-mini,
which knows the pictures of the toy world, and the words of the refusals."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from tests.lab import Lab
from vlbench.cell.cell import open_cell
from vlbench.cell.resolve import resolve
from vlbench.errors import UserError
from vlbench.mini.world import World, mini_root, worlds_folder
from vlbench.plugins.table import table
from vlbench.plugins.worlds import world_of, worlds

ROOT = Path(__file__).resolve().parents[2]
TOY = '''
"""Pictures of shapes, by class, in one list: toyshapes."""
import json
from statistics import fmean

from vlbench.mini.render import render
from vlbench.mini.scenes import COLORS, SHAPES, salient_scene
from vlbench.mini.world import World
from vlbench.task import Sample, Task, task

CLASSES = [(shape, color) for shape in SHAPES for color in COLORS]


def write(writer):
    writer.folder("pictures")
    for split in ("train", "val"):
        rows = {}
        for label, looks in enumerate(CLASSES):
            name = f"pictures/{split}-{label}.png"
            writer.image(name, render(salient_scene(split, 90_000 + label, *looks)))
            rows[name] = f"n9{label:07d}"
        writer.text(f"{split}.json", json.dumps(rows))


@task("toyshapes", title="Toy shapes", capability="classify", metric="right", version=1)
class ToyShapes(Task):
    """train.json and val.json say the class of each picture."""

    metrics = {"right": "higher"}

    @classmethod
    def roles(cls):
        return {"train": "train", "report": "val"}

    @classmethod
    def mini_world(cls):
        return World("NAME", 2 * len(CLASSES), write, "PIN")

    def missing(self, split):
        return [] if (self.root / f"{split}.json").is_file() else [f"{self.root}/{split}.json is missing."]

    def samples(self, split):
        rows = json.loads((self.root / f"{split}.json").read_text())
        return [Sample(name, (self.root / name,), target=wnid) for name, wnid in rows.items()]

    def score(self, sample, prediction):
        return float(prediction["top5"][0] == sample.target)

    def aggregate(self, samples, scores):
        return {"right": 100 * fmean(scores)}
'''


def plug(lab: Lab, name: str = "shapes", pin: str = "") -> None:
    lab.plug("tasks/toyshapes.py", TOY.replace("NAME", name).replace("PIN", pin))


@pytest.fixture
def toy(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """The toy task with the digest that its first build told, in a cache of its own."""
    monkeypatch.setenv("VLBENCH_CACHE", str(lab.folder / "cache"))
    plug(lab)
    first = lab("run", *WORDS)
    assert first.code == 1
    told = re.search(r"'shapes-' came out with digest ([0-9a-f]{64}), expected  ", first.err)
    assert told, first.err
    plug(lab, pin=told.group(1))
    return lab


WORDS = ("suite=mini", "task=toyshapes", "model=deit-mini")


def test_no_file_of_the_engine_names_a_task_of_the_mini_world() -> None:
    """No string of its code is the name of one."""
    names = {*worlds(), "toyshapes"}
    for file in (ROOT / "vlbench").rglob("*.py"):
        strings = {n.value for n in ast.walk(ast.parse(file.read_bytes())) if isinstance(n, ast.Constant)}
        assert not names & strings, file


def test_it_runs_is_pruned_and_trained(toy: Lab) -> None:
    """deit-mini names the large object of nearly every picture; half of its weights at random, of few."""
    assert toy("run", *WORDS).code == 0
    told = toy("run", *WORDS, "method=magnitude+finetune", "steps=2", "finetune.batch_size=4")
    assert told.code == 0, told.err
    dense, pruned = (json.loads(f.read_text()) for f in sorted(toy.folder.glob("runs/*/result.json"), key=str))
    assert dense["metrics"]["right"] > 70
    assert dense["metrics"]["right"] >= pruned["metrics"]["right"]
    assert len(list(worlds_folder().iterdir())) == 1


def test_it_is_verified(toy: Lab) -> None:
    assert "not built yet" in toy("data", "verify", "suite=mini", "task=toyshapes").out
    toy("run", *WORDS)
    assert toy("data", "verify", "suite=mini", "task=toyshapes").out.startswith("ok       mini/shapes-")
    (next(worlds_folder().iterdir()) / "pictures" / "val-3.png").unlink()
    assert "1 file is not there: pictures/val-3.png" in toy("data", "verify", "suite=mini", "task=toyshapes").out


def test_another_digest_is_another_cell_and_is_refused(toy: Lab) -> None:
    """The pinned digest enters the identity, and a world that does not come out with it is refused by its name."""
    before = open_cell(resolve(dict(word.split("=") for word in WORDS))).identity
    plug(toy, pin="0" * 64)
    told = toy("run", *WORDS)
    assert told.code == 1
    assert f"'shapes-{'0' * 12}' came out with digest" in told.err
    assert not list(toy.folder.glob("runs/*/result.json"))
    world = table("tasks").get("toyshapes").load().mini_world()
    assert before["split"] != world.digest
    assert [folder.name for folder in worlds_folder().iterdir()] == [f"shapes-{_pin(toy)[:12]}"]


def _pin(lab: Lab) -> str:
    """The digest of the world that is there."""
    (marker,) = worlds_folder().glob("*/COMPLETE")
    return marker.read_text().strip()


def test_the_name_of_a_built_in_world_takes_nothing_from_it(toy: Lab) -> None:
    pin = table("tasks").get("toyshapes").load().mini_world().digest
    plug(toy, name="imagenet", pin=pin)
    world = world_of(table("tasks").get("toyshapes"))
    assert world is not None
    assert mini_root(world) == worlds_folder() / f"imagenet-{pin[:12]}"
    assert worlds()["imagenet"].name == "imagenet"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('return World("../up", 0, write, "")', "should have a name of letters"),
        ('return World("a b", 0, write, "")', "should have a name of letters"),
        ('return World("shapes", 0, write, "12ab")', "a SHA-256 in 64 hex digits"),
        ('return "shapes"', "mini_world() returns str, not a World"),
        ("return World()", "mini_world() raises TypeError"),
        ("return None", "suite=mini has no data for task=toyshapes: write suite=full."),
    ],
)
def test_what_is_no_world_is_refused(lab: Lab, line: str, sentence: str) -> None:
    lab.plug("tasks/toyshapes.py", TOY.replace('return World("NAME", 2 * len(CLASSES), write, "PIN")', line))
    told = lab("run", *WORDS)
    assert told.code == 2
    assert sentence in told.err
    assert not list(lab.folder.glob("runs/*"))


def test_worlds_of_some_tasks() -> None:
    entries = [table("tasks").get(name) for name in ("vqav2", "coco_caption", "coco_retrieval", "mmmu")]
    chosen = worlds(entries)
    assert list(chosen) == ["vqav2", "coco_caption", "coco_retrieval"]
    assert chosen["coco_caption"] is chosen["coco_retrieval"]
    assert all(isinstance(world, World) for world in chosen.values())
    with pytest.raises(UserError, match="suite=mini has no data for task=mmmu"):
        open_cell(resolve({"task": "mmmu", "model": "llava-mini", "suite": "mini"}))
