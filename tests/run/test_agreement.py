"""What a link leaves behind besides its state is refused; what it declares is replayed. Oracle: the model itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import Block

from tests.lab import Lab
from vlbench.compression.saved import load_model

LINK = '''"""A link that changes the model by hand."""

import torch

from vlbench.method import Method, method


def halve(module, given):
    return (given[0] * 0.5, *given[1:])


@method("byhand", title="By hand", role="restorer")
class ByHand(Method):
    """Changes what blocks.1 computes."""

    def apply(self, job):
        net = job.model.net
        block = net.get_submodule("blocks.1")
        {does}

    @classmethod
    def replay(cls, model, state):
        assert state == {{"block": 1}}
        model.net.get_submodule("blocks.1").register_forward_pre_hook(halve)
'''
HOOK = "block.register_forward_pre_hook(halve)"
PATCH = "plain = block.forward; block.forward = lambda *given, **named: plain(*given, **named) * 2"
BUFFER = (
    "block.register_buffer('scale', torch.tensor(3.0), persistent=False); "
    "block.register_forward_hook(lambda module, given, out: out * module.scale)"
)
DECLARED = f"{HOOK}; job.changes.at_run_time('byhand', {{'block': 1}})"
EVERYWHERE = {
    "hook of all modules": (
        "handle = torch.nn.modules.module.register_module_forward_pre_hook(lambda module, given: None)",
        "global_forward_pre_hooks of torch",
    ),
    "forward of a class": (
        "kind = type(block); plain = kind.forward; kind.forward = lambda self, x, **more: plain(self, x, **more) * 2",
        "Block.forward",
    ),
    "torch's function": (
        "plain = torch.nn.functional.linear; torch.nn.functional.linear = lambda *given: plain(*given) * 2",
        "torch.nn.functional.linear",
    ),
}
HARMLESS = "block.register_forward_pre_hook(lambda module, given: None)"


def plug(lab: Lab, does: str) -> None:
    lab.plug("methods/byhand.py", LINK.format(does=does))


@pytest.mark.parametrize("does", [HOOK, PATCH, BUFFER], ids=["hook", "forward", "buffer"])
def test_what_is_not_saved_is_refused(lab: Lab, does: str) -> None:
    """A hook that dropped tokens gave exit 0 and the dense model's score as the method's."""
    plug(lab, does)
    told = lab.run("method=magnitude+byhand", "sparsity=0.5")
    assert told.code == 1
    assert "byhand leaves something behind that is not saved" in told.err
    runs = lab.folder / "runs"
    assert not list(runs.glob("*byhand*/result.json"))
    assert not list(runs.glob("*byhand*/model"))
    assert lab.run("method=magnitude+byhand", "sparsity=0.5").code == 1, "nor is it taken for done the next time"


@pytest.mark.parametrize("what", EVERYWHERE)
def test_what_acts_on_every_model_is_refused(lab: Lab, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model that is opened again computes with it, too: outputs before and after agree."""
    hooks = torch.nn.modules.module._global_forward_pre_hooks
    monkeypatch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)  # and so put back
    monkeypatch.setattr(Block, "forward", Block.forward)
    does, named = EVERYWHERE[what]
    plug(lab, does)
    told = lab.run("method=magnitude+byhand", "sparsity=0.5")
    hooks.clear()
    assert told.code == 1
    assert f"byhand changes {named} for every model of this process" in told.err
    assert not list((lab.folder / "runs").glob("*byhand*/result.json"))


def test_a_hook_that_changes_nothing_is_let_be(lab: Lab) -> None:
    plug(lab, HARMLESS)
    assert lab.run("method=magnitude+byhand", "sparsity=0.5").code == 0


def test_what_is_declared_is_replayed_on_load(lab: Lab) -> None:
    plug(lab, DECLARED)
    assert lab.run("method=magnitude+byhand", "sparsity=0.5").code == 0
    (folder,) = (lab.folder / "runs").glob("*byhand*/model")
    model, state = load_model(Path(folder))
    assert state.at_run_time == {"byhand": {"block": 1}}
    assert len(model.net.get_submodule("blocks.1")._forward_pre_hooks) == 1
