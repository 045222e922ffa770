"""Every attention kind, cut and saved here, computes the same bits when another process builds, cuts and loads it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.nn.kinds import KINDS, Kind
from vlbench.pruning.cut import Cut, cut
from vlbench.pruning.saved import distinct_tensors
from vlbench.weights import load_into

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


def test_reload_in_a_fresh_process_is_bit_exact(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for kind in KINDS:
        save(kind, tmp_path / kind.name)
    torch.set_num_threads(threads)
    code = f"import pathlib, tests.nn.test_fresh_process as t; t.load_and_compare(pathlib.Path({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [word for kind in KINDS for word in (kind.name, "True")]
