"""Block arguments are captured and replayed exactly, for every attention kind."""

from __future__ import annotations

import pytest
import torch

from tests.nn.test_kinds import adopted, every_kind, kinds
from vlbench.calibration.capture import capture, replay


@every_kind
def test_replayed_blocks_equal_the_run(kind: kinds.Kind) -> None:
    net = adopted(kind)
    for tower in kind.structure(net).towers:
        for block in tower.blocks:
            calls = capture(net, block, lambda: kind.run(net))
            assert calls, f"{block.path} is never called"
            for call in calls:
                assert torch.equal(replay(net, block, call), call.output)


@every_kind
def test_blocks_of_a_tower_chain(kind: kinds.Kind) -> None:
    """Feeding each block the output of the one before, with its own other arguments, gives the tower's output."""
    net = adopted(kind)
    for tower in kind.structure(net).towers:
        captured = [capture(net, block, lambda: kind.run(net)) for block in tower.blocks]
        for calls in zip(*captured, strict=True):
            hidden = calls[0].hidden
            for block, call in zip(tower.blocks, calls, strict=True):
                hidden = replay(net, block, call, hidden)
            assert torch.equal(hidden, calls[-1].output)


def test_a_cache_is_refused() -> None:
    """A replay after pruning k_proj would read the old keys from it, silently."""
    kind = next(k for k in kinds.KINDS if k.name == "llama")
    net = adopted(kind)
    block = kind.structure(net).towers[0].blocks[0]
    with pytest.raises(ValueError, match="use_cache=False"):
        capture(net, block, lambda: net(torch.tensor([[1, 2, 3]]), use_cache=True))
