"""Every attention kind and every mini model, compressed and saved here, computes the same bits when another process
builds, cuts and loads it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import vlbench
from tests import minis, stock_runs
from tests.nn.kinds import KINDS, Kind
from vlbench.compression.cut import Cut, cut
from vlbench.compression.saved import distinct_tensors, save_model
from vlbench.tensors.reading import load_into

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def save(kind: Kind, folder: Path) -> None:
    """Cut every site to a random half, and write weights, cuts and outputs."""
    torch.manual_seed(3)
    net = kind.adopt(kind.build())
    structure = kind.structure(net)
    keep = {s.name: torch.randperm(s.units)[: max(1, s.units // 2)].sort().values for s in structure.sites}
    made = Cut.of(structure, keep)
    cut(net, structure, keep)
    with torch.no_grad():
        outputs = kind.run(net)
    folder.mkdir()
    (folder / "cut.json").write_text(json.dumps(made.sites))
    save_file(distinct_tensors(net), folder / "model.safetensors")
    save_file({"outputs": outputs.contiguous()}, folder / "outputs.safetensors")


def load_and_compare(root: Path) -> None:
    """What the other process does."""
    torch.set_num_threads(1)
    for kind in KINDS:
        folder = root / kind.name
        net = kind.adopt(kind.build())
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.zero_()  # nothing may come from the builder
        sites = {k: (unit, kept) for k, (unit, kept) in json.loads((folder / "cut.json").read_text()).items()}
        Cut(sites).repeat(net, kind.structure(net))
        load_into(net, load_file(folder / "model.safetensors"))
        with torch.no_grad():
            same = torch.equal(kind.run(net), load_file(folder / "outputs.safetensors")["outputs"])
        print(kind.name, same)


def test_reload_in_a_fresh_process_is_bit_exact(tmp_path: Path, one_thread: None) -> None:
    for kind in KINDS:
        save(kind, tmp_path / kind.name)
    assert told_elsewhere("load_and_compare", tmp_path) == {kind.name: "True" for kind in KINDS}


def load_minis(root: Path) -> None:
    """What the other process does of the mini models: the largest difference of each from what was recorded."""
    torch.set_num_threads(1)
    for folder in sorted(root.iterdir()):
        model, wanted = vlbench.load(folder), load_file(folder / "wanted.st")
        found = stock_runs.outputs(model.card.name, model.net)
        print(folder.name, max(float((found[key] - one).abs().max()) for key, one in wanted.items()))


def test_every_head_reloads_in_a_fresh_process_bit_for_bit(tmp_path: Path, one_thread: None) -> None:
    for name in minis.names():
        for way in minis.WAYS:
            model, state = minis.compressed(name, way)
            folder = tmp_path / f"{name}@{way}"
            save_model(folder, model, state)
            stock_runs.save(stock_runs.outputs(name, model.net), folder / "wanted.st")
    found = told_elsewhere("load_minis", tmp_path)
    assert found == {f"{name}@{way}": "0.0" for name in minis.names() for way in minis.WAYS}


def told_elsewhere(function: str, root: Path) -> dict[str, str]:
    """What a function of this file prints in a process of its own: lines of two words."""
    code = f"import pathlib, tests.nn.test_fresh_process as t; t.{function}(pathlib.Path({str(root)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    return dict(zip(words[::2], words[1::2], strict=True))
