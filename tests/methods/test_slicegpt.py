"""Oracle: SliceGPT's own functions, recorded; and the model before it was turned, in float64."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import minis
from tests.lab import Lab
from tests.nn import kinds, library_kinds
from tests.oracles import Oracle
from vlbench.compression.changes import Changes
from vlbench.compression.cut import cut
from vlbench.compression.saved import load_model
from vlbench.compression.width import key_of_width
from vlbench.errors import UserError
from vlbench.pruning.rotation import Plan, TurnedNorm, folded, plan, principal, second_moment, turn_norm
from vlbench.structure import Slice, Stream, Tower

slicegpt = importlib.import_module("vlbench.methods.slicegpt")
KINDS = {kind.name: kind for kind in (*kinds.KINDS, *library_kinds.LIBRARY_KINDS)}
# kind -> the tower that is turned
TURNED = {
    "deit": "vision",
    "blip_vqa": "vision",
    "llama": "language",
    "Qwen2VLVision": "tower",
    "Qwen2_5_VLVision": "tower",
}
REFUSED = {
    "blip_nlvr": "gives is the stream itself",  # BERT: norms after the additions
    "clip_vision": "pre_layrnorm gives is the stream itself",
    "opt": "a head that is the matrix of the embeddings is none",
    "InternVLVisionModel": "weighs its dimensions one by one",
    "t5": "cannot be turned: encoder and decoder share one matrix",
}


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def oracle(shared: Path) -> Oracle:
    return Oracle(shared / "oracles" / "neighbours" / "slicegpt_a.npz")


def test_principal_directions(oracle: Oracle) -> None:
    """X: (batches, samples, tokens, width); padding counts in nothing."""
    for mask, name in ((oracle["mask"], "eig_val"), (torch.ones_like(oracle["mask"]), "eig_val_nomask")):
        values, q = principal(second_moment(oracle["X"], mask))
        assert torch.allclose(values, oracle[name], rtol=0, atol=1e-8)
        if name == "eig_val":
            assert torch.allclose((q.T @ oracle["Q"]).abs(), torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-8)


class Toy(nn.Module):
    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.prev, self.ln, self.lin = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 6)
        self.double().load_state_dict(weights)

    def forward(self, z: Tensor) -> Tensor:
        made: Tensor = self.lin(self.ln(self.prev(z)))
        return made


def test_folding_turning_and_slicing(oracle: Oracle) -> None:
    net = Toy(oracle.tensors("before/"))
    units = torch.arange(8)[:, None]
    places = {"prev.weight": ((8, 6), 0), "prev.bias": ((8,), 0), "ln.weight": ((8,), 0), "ln.bias": ((8,), 0)}
    slices = [Slice(n, shape, dim, units) for n, (shape, dim) in {**places, "lin.weight": ((6, 8), 1)}.items()]
    stream = Stream(tuple(slices), ("prev",), ("ln",))
    made = Plan(Tower("t", (), stream=stream), stream, {"ln": ["lin"]}, mean=True)
    assert torch.allclose(net(oracle["z"]), oracle["y"], rtol=0, atol=1e-12)
    fold = folded(net, made)
    for name in ("prev.weight", "prev.bias", "lin.weight"):
        assert torch.allclose(fold.weights[name], oracle[f"fused/{name}"], rtol=0, atol=1e-12), name
    assert torch.allclose(net.lin.bias + fold.biases["lin"], oracle["fused/lin.bias"], rtol=0, atol=1e-12)
    changes: Any = Changes(SimpleNamespace(net=net))  # type: ignore[arg-type]
    assert slicegpt.turn(changes, made, oracle["Q"]) == {"ln": 8}
    assert torch.allclose(net(oracle["z"]), oracle["y"], rtol=0, atol=1e-10)
    kept = oracle.facts["sliced_to"]
    for layer, dim in ((net.prev, 0), (net.ln, 0), (net.lin, 1)):
        layer.weight = nn.Parameter(layer.weight.narrow(dim, 0, kept))
        if dim == 0:
            layer.bias = nn.Parameter(layer.bias[:kept])
    assert torch.allclose(net(oracle["z"]), oracle["y_sliced"], rtol=0, atol=1e-8)


def exact(net: nn.Module) -> None:
    """RMS norms of the library round to float32 inside, whatever the model's type: here they do not."""
    for norm in net.modules():
        if "RMSNorm" in type(norm).__name__:

            def forward(x: Tensor, norm: Any = norm) -> Tensor:
                wide: Tensor = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon)
                return wide * norm.weight

            norm.forward = forward


@pytest.mark.parametrize(("name", "tower"), TURNED.items())
def test_a_turned_model_computes_the_same(name: str, tower: str) -> None:
    """To 1e-10 in float64; and cut to all but directions in which nothing lies, still."""
    kind = KINDS[name]
    net = kind.adopt(kind.build())
    exact(net)
    want = kind.run(net)
    (chosen,) = (t for t in kind.structure(net).towers if t.name == tower)
    made = plan(net, chosen, lambda: kind.run(net))
    width = made.stream.width
    changes: Any = Changes(SimpleNamespace(net=net))  # type: ignore[arg-type]
    q = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))[0]
    norms = slicegpt.turn(changes, made, q)
    assert float((kind.run(net) - want).abs().max()) <= 1e-10
    gone = torch.arange(width - width // 4, width)
    read = {*made.readers, *made.raw, *(path for paths in made.readers.values() for path in paths)}
    for part in made.stream.slices:  # nothing is written to the last directions any more
        if part.param.removesuffix(".weight").removesuffix(".bias") not in read:
            parameter = net.get_parameter(part.param)
            parameter.index_fill_(part.dim, part.index[gone].flatten(), 0.0)
    narrow = kind.run(net)
    slicegpt._keep_scale(changes, made, width - len(gone))
    cut(net, kind.structure(net), {key_of_width(chosen): torch.arange(width - len(gone))})
    assert all(net.get_submodule(path).full == width for path in norms)
    for path in set(made.readers) - set(norms):  # a library's epsilon is added to the mean over the kept width
        net.get_submodule(path).variance_epsilon *= width / (width - len(gone))
    assert float((kind.run(net) - narrow).abs().max()) <= 1e-10


@pytest.mark.parametrize(("name", "why"), REFUSED.items())
def test_what_cannot_be_turned_says_why(name: str, why: str) -> None:
    kind = KINDS[name]
    net = kind.adopt(kind.build())
    tower = kind.structure(net).towers[0]
    with pytest.raises(UserError, match=why):
        plan(net, tower, lambda: kind.run(net))


def test_a_run_meets_the_target_and_opens_again(lab: Lab) -> None:
    told = lab.run("method=slicegpt", "sparsity=0.5", "calibration_samples=6")
    assert told.code == 0, told.err
    folder = next(p.parent for p in lab.folder.rglob("result.json") if "slicegpt" in str(p))
    parameters = json.loads((folder / "result.json").read_text())["parameters"]
    assert parameters["removed"] / parameters["prunable"] == pytest.approx(0.5, abs=0.02)
    model, state = load_model(folder / "model")
    assert isinstance(model.net.get_submodule("norm"), TurnedNorm)
    assert set(state.at_run_time["slicegpt"].values()) == {16}
    assert 0.5 < state.log["slicegpt"]["variance"]["vision"] < 1
    images = torch.randn(2, 3, 64, 64)
    before = model.encode(images)
    turn_norm(model.net, "norm", 1600)
    assert not torch.allclose(model.encode(images), before)


def test_a_tower_is_refused_before_anything_is_written() -> None:
    method = slicegpt.SliceGpt(slicegpt.SliceOptions(sparsity=0.2))
    with pytest.raises(UserError, match="the tower question cannot be turned: what its norm"):
        method.check_model(minis.opened("blip-vqa-mini"))
    alone = slicegpt.SliceGpt(slicegpt.SliceOptions(sparsity=0.1, towers="question:0,answer:0"))
    alone.check_model(minis.opened("blip-vqa-mini"))
