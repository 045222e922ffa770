"""Exported models: opened by their libraries' classes in a process that has no vlbench, and as small as claimed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from runpy import run_path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import minis, stock_runs
from tests.lab import Lab
from tests.registry import prompted
from tests.registry import test_blip2_retrieval as retrieval
from vlbench import load
from vlbench.compression.export import export, find_model
from vlbench.compression.saved import save_model
from vlbench.compression.state import Compression
from vlbench.cost.counts import count_parameters
from vlbench.errors import UserError
from vlbench.plugins.table import table

pytestmark = pytest.mark.slow

HERE = Path(__file__).parents[1]
LINES = 55  # of a load.py
TOLERANCE = 1e-6  # of the largest output
RETRIEVAL = "blip2-retrieval"
TINY = (*prompted.NAMES, RETRIEVAL)
CASES = [
    *((name, way) for name in minis.names() for way in minis.WAYS),
    *((name, way) for name in TINY for way in ("cut", "heads", "masked", "depth", "width")),
]

# What the other process does: argv are this folder and the exported ones.
COMPARE = """
import json, sys
from pathlib import Path
from runpy import run_path
sys.modules["vlbench"] = None  # importing it raises
sys.path.insert(0, sys.argv[1])
import torch
import stock_runs
torch.set_num_threads(1)
told = {}
for folder in map(Path, sys.argv[2:]):
    net = run_path(str(folder / "load.py"))["load"](folder)
    save = stock_runs.outputs(folder.name.partition("@")[0], net)
    stock_runs.save(save, folder / "found.st")
    told[folder.name] = [type(net).__name__, [m.__class__.__module__ for m in net.modules()]]
assert not [name for name in sys.modules if name.startswith("vlbench.")]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[object]]]:
    """Every mini model, compressed in every way and exported to NAME@WAY, with what it computes; so are two ways of the
    tiny models with a language model. And what the process without vlbench says of each."""
    root = tmp_path_factory.mktemp("exported")
    for name, way in CASES:
        if name in TINY:
            model = retrieval.build(root) if name == RETRIEVAL else prompted.build(name, root)
            model.net.float()
            model, state = minis.compress(model, way)
        else:
            model, state = minis.compressed(name, way)
        folder = root / f"{name}@{way}"
        save_model(root / "saved", model, state)
        export(str(root / "saved"), folder, root)
        stock_runs.save(stock_runs.outputs(name, model.net), folder / "wanted.st")
    words = [sys.executable, "-c", COMPARE, str(HERE), *map(str, sorted(root.glob("*@*")))]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return root, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("name", "way"), CASES)
def test_the_librarys_own_class_computes_the_same(
    opened: tuple[Path, dict[str, list[object]]], name: str, way: str
) -> None:
    folder = opened[0] / f"{name}@{way}"
    wanted, found = load_file(folder / "wanted.st"), load_file(folder / "found.st")
    assert wanted.keys() == found.keys()
    for key, one in wanted.items():
        assert one.abs().max() > 0.01  # it is a function of something
        assert float((found[key] - one).abs().max() / one.abs().max()) <= TOLERANCE


@pytest.mark.parametrize("name", dict.fromkeys(name for name, _ in CASES))
def test_a_loader_is_short_and_builds_the_librarys_classes(
    opened: tuple[Path, dict[str, list[object]]], name: str
) -> None:
    folder = opened[0] / f"{name}@cut"
    assert len((folder / "load.py").read_text().splitlines()) <= LINES
    _, modules = opened[1][folder.name]
    assert isinstance(modules, list)
    own = ("blip-nlvr-mini", "segmenter-mini")  # classes that no library has
    assert (folder / "network.py").exists() is (name in own)
    library = {"clip": "open_clip", "deit": "timm", "segmenter": "timm"}.get(name.split("-")[0], "transformers")
    assert any(module.startswith(library + ".") for module in modules)
    if name not in own:
        assert modules[0].startswith((library + ".", "timm."))


@pytest.mark.parametrize("name", minis.names())
def test_vlbench_load_gives_the_same_bits(opened: tuple[Path, dict[str, list[object]]], name: str) -> None:
    """Though the loader multiplies queries, the weights in the folder are the run's."""
    for way in ("cut", "masked"):
        model, _ = minis.compressed(name, way)
        state, again = model.net.state_dict(), load(opened[0] / f"{name}@{way}").net.state_dict()
        assert state.keys() == again.keys()
        assert all(torch.equal(state[key], again[key]) for key in state)


def test_folders_of_assets_travel_and_are_watched(opened: tuple[Path, dict[str, list[object]]], tmp_path: Path) -> None:
    """InstructBLIP has a second tokenizer, in a folder of its own."""
    folder = shutil.copytree(opened[0] / "instructblip-t5@cut", tmp_path / "copy")
    (inside,) = (path for path in folder.iterdir() if path.is_dir())
    load(folder)
    file = next(path for path in inside.iterdir() if path.suffix == ".json")
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(UserError, match=f"{inside.name}/{file.name} is damaged"):
        load(folder)


def data_bytes(file: Path) -> int:
    """Of a safetensors file, without its header."""
    with file.open("rb") as stream:
        return file.stat().st_size - 8 - int.from_bytes(stream.read(8), "little")


@pytest.mark.parametrize("name", minis.names())
def test_a_file_holds_what_is_left_and_nothing_twice(opened: tuple[Path, dict[str, list[object]]], name: str) -> None:
    for way in minis.WAYS:
        model, _ = minis.compressed(name, way)
        left = sum(p.numel() for p in model.net.parameters())
        assert data_bytes(opened[0] / f"{name}@{way}" / "model.safetensors") == 4 * left


@pytest.mark.parametrize("kept", [0.25, 0.5])
def test_the_file_shrinks_by_the_claimed_ratio(tmp_path: Path, kept: float) -> None:
    cls = table("models").get("deit-small").load()
    model = cls.build(cls.cards[0], {"architecture": "deit_small_patch16_224"}, tmp_path)
    dense, structure = sum(p.numel() for p in model.net.parameters()), model.structure()
    save_model(tmp_path / "dense", model, Compression())
    state = Compression()
    minis.cut_to(model, state, {s.name: torch.arange(int(kept * s.units)) for s in structure.sites})
    save_model(tmp_path / "cut", model, state)
    export(str(tmp_path / "cut"), tmp_path / "exported", tmp_path)
    claimed = count_parameters(model, dense=dense, prunable=structure.size, towers=structure.tower_sizes())
    before, after = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("dense", "exported"))
    assert after / before == pytest.approx(claimed.total / claimed.dense, rel=0.01)
    assert after / before < kept + 0.1


def test_a_loader_refuses_other_weights(opened: tuple[Path, dict[str, list[object]]], tmp_path: Path) -> None:
    for name in minis.names():
        folder = shutil.copytree(opened[0] / f"{name}@cut", tmp_path / name)
        weights = load_file(folder / "model.safetensors")
        lost = next(key for key in weights if key.endswith(("qkv.weight", "q_proj.weight")))
        save_file({k: v for k, v in weights.items() if k != lost}, folder / "model.safetensors")
        with pytest.raises(ValueError, match="has other weights than the model") as caught:
            run_path(str(folder / "load.py"))["load"]()
        assert str(folder) in str(caught.value)
        assert lost in str(caught.value)


@pytest.fixture
def lab(lab: Lab) -> Lab:
    """A workspace with a finished run of a pruner and of the dense model."""
    assert lab.run("method=uniform", "sparsity=0.5").code == 0
    return lab


def test_a_run_is_named_by_its_name_its_beginning_or_its_folder(lab: Lab) -> None:
    name = next(p.name for p in (lab.folder / "runs").glob("*uniform*"))
    beginning = name[: name.index("uniform") + 3]
    for number, run in enumerate((name, beginning, f"runs/{name}", f"runs/{name}/model")):
        told = lab("export", run, f"out{number}")
        assert told.code == 0, told
        files = "config.json, load.py, model.safetensors, preprocessing.json, stock.json, vlbench.json"
        assert told.out == f"wrote out{number}: {files}\n"
    assert sorted(p.name for p in lab.folder.glob(".out*")) == []
    assert lab("export", "out0", "copy").code == 0  # what was exported is a model folder, too
    for file in (lab.folder / "out0").iterdir():
        assert (lab.folder / "copy" / file.name).read_bytes() == file.read_bytes()


def test_what_is_wrong_is_told_and_nothing_written(lab: Lab) -> None:
    dense = next(p.name for p in (lab.folder / "runs").glob("*dense*"))
    uniform = next(p.name for p in (lab.folder / "runs").glob("*uniform*"))
    assert "is of the dense model, which nothing was done to" in lab.refused("export", dense, "out")
    ambiguous = lab.refused("export", "full-imagenet", "out")
    assert ambiguous == f"'full-imagenet' begins the names of {dense}, {uniform}: give more of one of them."
    assert f"Did you mean {uniform!r}?" in lab.refused("export", uniform[:-1] + "?", "out")
    (lab.folder / "taken").mkdir()
    assert lab("export", uniform, "taken").code == 0  # an empty folder is nobody's
    assert "taken holds something already" in lab.refused("export", uniform, "taken")
    assert "weights holds something already" in lab.refused("export", uniform, "weights")
    model = lab.folder / "runs" / uniform / "model"
    (model / "config.json").write_text("{}")
    assert "config.json is damaged" in lab.refused("export", uniform, "out")
    model.rename(model.with_name("gone"))
    assert "has no compressed model yet" in lab.refused("export", uniform, "out")


def test_a_folder_is_written_whole_or_not_at_all(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = lab.listing()
    monkeypatch.setattr("vlbench.compression.export.write_text", full)
    with pytest.raises(UserError, match=r"cannot write .*out: No space left on device"):
        export("full-imagenet-deit-mini-uniform", Path("out"), Path("runs"))
    assert lab.listing() == before


def test_a_family_without_a_loader_is_exported_without_one(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table("models").get("deit-mini").load(), "stock", lambda _: None)
    wrote, why = export("full-imagenet-deit-mini-uniform", Path("out"), Path("runs"))
    assert wrote == "wrote out: config.json, model.safetensors, preprocessing.json, vlbench.json"
    assert why.startswith("no load.py: deit-mini has no Model.stock()")
    assert load("out").card.name == "deit-mini"


def test_no_run_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no run 'mine' in .*There are none"):
        find_model("mine", tmp_path)
