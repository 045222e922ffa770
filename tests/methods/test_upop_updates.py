"""UPop's own update of its masks (sdc17/UPop, deit/engine.py), run at other targets and intervals than 0.5 and 4."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch

from tests.methods.test_upop import deit_names
from tests.methods.upop_code import code_options, code_search
from tests.oracles import Oracle
from vlbench.compression.gates import Gates
from vlbench.nn import timm as adopted
from vlbench.structure import Structure

FILE = Path(__file__).parents[1] / "oracles" / "upop" / "updates_deit.npz"
CASES = json.loads(FILE.with_suffix(".json").read_text())["cases"]


@pytest.mark.parametrize("name", CASES)
def test_every_update_sets_the_original_s_masks(name: str) -> None:
    """The gradients summed before an update -> the units kept after it, and the masks but for a last bit."""
    oracle, facts = Oracle(FILE), CASES[name]
    net = timm.create_model("deit_small_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2)
    adopted.adopt(net).double()
    structure = Structure((adopted.vision_tower(net),))
    options = code_options("imagenet", sparsity=facts["p"], steps=facts["steps"], interval=facts["interval"])
    search = code_search(Gates(net, structure), structure, options)
    names = deit_names(structure)
    for step in range(facts["steps"]):
        if step in dict(facts["updates"]):
            recorded = oracle.tensors(f"{name}/grad/{step:04d}/")
            search.total = {site: recorded[key] for site, key in names.items()}
        search.after_step(step)
        if step in dict(facts["updates"]):
            masks = oracle.tensors(f"{name}/alpha/{step:04d}/")
            for site, key in names.items():
                gates = search.gates.value[site].detach()
                assert torch.equal(gates == 1, masks[key] == 1), (step, site)
                assert torch.allclose(gates, masks[key], rtol=0, atol=1e-15), (step, site)
    assert search.updates == [(step, pytest.approx(ratio, abs=1e-15)) for step, ratio in facts["updates"]]
