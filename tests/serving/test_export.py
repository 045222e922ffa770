"""Runtimes compute what the model computes, on its own samples: the oracle is the evaluation loop with torch."""

from __future__ import annotations

import json
from pathlib import Path
from runpy import run_path

import pytest
import torch

from tests import minis, stock_runs
from tests.lab import Lab, workspace
from vlbench.compression.export import export
from vlbench.compression.saved import save_model
from vlbench.compression.state import Compression
from vlbench.errors import UserError
from vlbench.plugins.table import table
from vlbench.runtime import Served, Stage
from vlbench.serving.export import installed, runtime_named
from vlbench.serving.measured import stated_parts
from vlbench.serving.stages import noted, parts_of

pytestmark = pytest.mark.slow

# A runtime of a stranger that computes with the stages themselves, times FACTOR.
MINE = """
from vlbench import load
from vlbench.compression.saved import copy_saved
from vlbench.runtime import Runtime, runtime

@runtime("mine", title="Mine", packages=("numpy",))
class Mine(Runtime):
    def refusal(self, served):
        return "it is masked" if served.state.masks else ""
    def write(self, served, folder):
        copy_saved(served.source, folder)
        return ["a sentence of mine."]
    def open(self, served, folder, threads):
        model = load(folder)
        return {
            part.stage.name: lambda tensors, stage=part.stage: stage.compute(model, *tensors) * FACTOR
            for part in served.parts
        }
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> object:
    with workspace(tmp_path, monkeypatch, capsys, val=30) as made:
        assert made.run("method=uniform", "sparsity=0.5").code == 0
        made.plug("runtimes/mine.py", MINE.replace("FACTOR", "1.00001"))
        yield made


def test_a_strangers_runtime_is_proved_on_the_runs_samples(lab: Lab) -> None:
    assert "Mine" in lab("list", "runtimes").out
    told = lab("export", "full-imagenet-deit-mini-uniform", "out", "--to", "mine")
    assert told.code == 0, told
    wrote, mine, proof = told.out.splitlines()
    assert wrote == "wrote out: config.json, model.safetensors, proof.json, vlbench.json"
    assert mine == "a sentence of mine."
    assert proof.startswith("proof: 64 of 64 samples predicted alike by numpy")
    found = json.loads((lab.folder / "out" / "proof.json").read_text())
    assert (found["samples"], found["equal"], found["of"]) == (64, 64, 90)
    assert found["stages"]["encode"]["relative"] == pytest.approx(1e-5, rel=0.02)
    assert found["stages"]["encode"]["calls"] == 4
    assert list(found["files"]) == ["config.json", "model.safetensors", "vlbench.json"]


def test_a_folder_for_the_hub_has_a_card_of_its_record(lab: Lab) -> None:
    """The card's metadata are YAML, its numbers the record's, and the folder opens to the run's bits (tolerance 0)."""
    import yaml

    told = lab("export", "full-imagenet-deit-mini-uniform", "hub", "--to", "hub-folder")
    assert told.code == 0, told
    assert "largest difference as a part of the largest output: encode 0" in told.out
    (result,) = (lab.folder / "runs").glob("*uniform*/result.json")
    record = json.loads(result.read_text())
    _, head, text = (lab.folder / "hub" / "README.md").read_text().split("---\n", 2)
    head = yaml.safe_load(head)
    assert head["license"] == "apache-2.0"
    assert "base_model" not in head, "weights of the package are on no hub"
    metrics = head["model-index"][0]["results"][0]["metrics"]
    assert {m["type"]: m["value"] for m in metrics} == record["metrics"]
    interval = record["interval"]
    assert f"{interval['value']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]" in text
    assert f"{record['parameters']['total']:,}" in text
    assert "from FOLDER.load import load" in text
    assert sorted(p.name for p in (lab.folder / "hub").iterdir()) == [
        "README.md", "config.json", "load.py", "model.safetensors", "preprocessing.json", "proof.json", "stock.json",
        "vlbench.json",
    ]  # fmt: skip
    lab.run("method=dense")
    refused = lab("export", "full-imagenet-deit-mini-dense", "dense", "--to", "hub-folder")
    assert refused.code == 2
    assert "upload the checkpoint that it came from" in refused.err


def test_a_proof_that_fails_says_what_and_where_and_leaves_nothing(lab: Lab) -> None:
    lab.plug("runtimes/mine.py", MINE.replace("FACTOR", "1.01"))
    told = lab("export", "full-imagenet-deit-mini-uniform", "out", "--to", "mine")
    assert told.code == 1
    assert "no proof: Mine computes other outputs of encode: they differ by " in told.err
    assert "0.01 of the largest one, and 0.0001 are allowed" in told.err
    # As alike as can be, and another answer: outputs alone would not say so.
    loose = MINE.replace("class Mine(Runtime):", "class Mine(Runtime):\n    tolerance = 2.0")
    lab.plug("runtimes/mine.py", loose.replace("FACTOR", "-1"))
    told = lab("export", "full-imagenet-deit-mini-uniform", "out", "--to", "mine")
    assert told.code == 1
    assert "no proof: Mine predicts something else on " in told.err
    lab.plug("runtimes/mine.py", MINE.replace("FACTOR", "float('nan')"))
    assert "they differ by nan" in lab("export", "full-imagenet-deit-mini-uniform", "out", "--to", "mine").err
    assert not list(lab.folder.glob("*out*"))


def test_what_cannot_be_asked_is_told_and_nothing_written(lab: Lab) -> None:
    run = next(p.name for p in (lab.folder / "runs").glob("*uniform*"))
    assert "there is no runtime 'onxx'. Did you mean 'onnx'?" in lab.refused("export", run, "out", "--to", "onxx")
    lab.plug("runtimes/other.py", MINE.replace('"mine"', '"other"').replace('"numpy"', '"no_such_wheel"'))
    assert lab.refused("export", run, "out", "--to", "other") == (
        "--to other needs no_such_wheel, which is not installed: pip install no_such_wheel"
    )
    assert "weights holds something already" in lab.refused("export", run, "weights", "--to", "mine")
    assert lab.run("method=magnitude", "sparsity=0.5").code == 0
    masked = next(p.name for p in (lab.folder / "runs").glob("*magnitude*"))
    assert lab.refused("export", masked, "out", "--to", "mine") == "Mine cannot hold this deit-mini: it is masked."
    told = lab("export", masked, "out", "--to", "torch")
    assert told.code == 0, told
    assert "zeros are stored, and the file is as large as the dense" in told.out
    (lab.folder / "runs" / run / "result.json").unlink()
    assert "is no finished run" in lab.refused("export", run, "new", "--to", "mine")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlbench.serving.export.installed", lambda package: False)
    with pytest.raises(UserError, match=r'onnxruntime, which is not installed: pip install "vlbench\[onnx\]"'):
        runtime_named("onnx")


def test_an_operator_that_a_runtime_lacks_is_told_with_its_stage(lab: Lab) -> None:
    lab.plug("runtimes/mine.py", MINE.replace("copy_saved(served", "1 / 0; copy_saved(served"))
    told = lab("export", "full-imagenet-deit-mini-uniform", "out", "--to", "mine")
    assert told.code == 1
    assert "Mine cannot write deit-mini (encode): ZeroDivisionError" in told.err


def test_measured_where_it_is_served(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries of runtimes stand beside torch's, and replace their own alone."""
    from vlbench.cost import timing

    for name in ("WARM", "LATENCY", "BATCH"):
        monkeypatch.setattr(timing, name, timing.Patience(1, 1, 0.0))
    monkeypatch.setattr(timing, "LARGEST", 2)
    run = next(p.name for p in (lab.folder / "runs").glob("*uniform*"))
    assert lab("time", run).code == 0
    for _ in range(2):
        told = lab("time", run, "--runtime", "mine,torch", "--json")
        assert told.code == 0, told
    assert [one["runtime"] for one in json.loads(told.out)] == ["mine", "torch"]
    kept = json.loads((lab.folder / "runs" / run / "cost.json").read_text())["measured"]
    assert [one.get("runtime") for one in kept] == [None, "mine", "torch"]
    mine = kept[1]
    assert mine["bytes"] > 10_000
    assert mine["version"].startswith("numpy ")
    assert mine["stages"] == ["encode"]
    assert mine["latency_ms"]["p50"] > 0
    assert "float32 on the CPU alone" in lab("time", run, "--runtime", "mine", "--precision", "bf16").err
    assert "measure different things" in lab("time", run, "--runtime", "mine", "--accelerate", "semi_structured").err


def test_a_family_that_says_nothing_is_refused_by_name() -> None:
    model = minis.opened("segmenter-mini")
    listed = Stage("encode", "encode", {"images": ("",)}, lambda model, a: a, tensors=lambda images: (images[0],))
    wrong = pytest.raises(UserError, match="segmenter-mini cannot be served elsewhere: its encode gives no tensor")
    with wrong, noted(model, (listed,)):
        model.encode([torch.zeros(3, 64, 64)])
    with noted(model, model.stages()) as calls, pytest.raises(UserError, match="calls none of its stages"):
        parts_of(model, model.stages(), calls)
    assert "masks" not in vars(model.net)  # what was put there is taken away


HEAVY = ("onnx", "openvino")


@pytest.mark.parametrize("name", ["pt2", *HEAVY])
def test_a_runtime_computes_the_same_bits_or_nearly(name: str, tmp_path: Path) -> None:
    """Uneven heads and feed-forward layers; more rows than were traced. All minis: docs/runtimes.md."""
    if missing := [p for p in table("runtimes").get(name).facts["packages"] if not installed(p)]:
        pytest.skip(f"{missing[0]} is not installed")
    runtime = runtime_named(name)
    for model_name in ["deit-mini"] if name in HEAVY else ["blip-nlvr-mini", "segmenter-mini", "internvl-mini"]:
        served = _served(model_name, "cut")
        folder = tmp_path / model_name
        folder.mkdir()
        runtime.write(served, folder)
        serve = runtime.open(served, folder, 1)
        for part in served.parts:
            more = tuple(torch.cat([t, t.flip(0), t], 0) for t in part.example)
            with torch.no_grad():
                wanted = part.stage.compute(served.model, *more)
            found = serve[part.stage.name](more)
            difference = float((found - wanted).abs().max() / wanted.abs().max())
            assert difference <= (0.0 if name == "pt2" else runtime.tolerance), (model_name, part.stage.name)


def _served(name: str, way: str) -> Served:
    model, state = minis.compressed(name, way)
    served = Served(model, state, ())
    capability = model.card.capabilities[0]
    return Served(model, state, stated_parts(served, capability))


@pytest.mark.parametrize(
    ("name", "gone", "refusing"),
    [
        ("deit-mini", "attention", {"onnx", "openvino"}),
        ("deit-mini", "ffn", {"openvino"}),
        ("blip-vqa-mini", "attention", {"onnx", "openvino", "stock"}),
        ("blip-vqa-mini", "ffn", {"openvino"}),
    ],
)
def test_a_layer_of_which_nothing_is_left_is_held_or_refused(
    name: str, gone: str, refusing: set[str], tmp_path: Path
) -> None:
    """A division by zero, once. What is not refused by a sentence computes the same; so does the library's class."""
    model, state = minis.opened(name), Compression(pattern="structured")
    sites = model.structure().sites
    minis.cut_to(model, state, {s.name: torch.arange(0 if s.kind == gone else s.units) for s in sites})
    save_model(tmp_path / "saved", model, state)
    served = Served(model, state, (), tmp_path / "saved")
    runtimes = {word: table("runtimes").get(word).load()() for word in ("onnx", "openvino", "stock", "pt2", "torch")}
    assert {word for word, made in runtimes.items() if "is left" in made.refusal(served)} == refusing
    told = export(str(tmp_path / "saved"), tmp_path / "out", tmp_path)
    assert ("nothing is left of" in told[-1]) == ("stock" in refusing)
    if "stock" not in refusing:
        found = stock_runs.outputs(name, run_path(str(tmp_path / "out" / "load.py"))["load"](tmp_path / "out"))
        for key, one in stock_runs.outputs(name, model.net).items():
            assert float((found[key] - one).abs().max() / one.abs().max()) <= 1e-6
