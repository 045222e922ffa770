"""Oracle: plain hooked runs of the whole model. What a model adds between its blocks is added in replay, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vlbench.calibration.blocks import block_statistics
from vlbench.errors import RunFailed
from vlbench.structure import Block, Structure, Tower, ffn_site


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.act = nn.Linear(6, 8), nn.Linear(8, 6), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.act(self.fc1(x)))


class Net(nn.Module):
    """Adds, or multiplies, something of the input after its first and its second block."""

    def __init__(self, joined: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(4))
        self.joined = joined

    def forward(self, x: Tensor, more: Tensor) -> Tensor:
        hidden = x
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden)
            if number < 2:
                hidden = self.joined(hidden, more * (number + 1))
        return hidden


def structure_of(net: nn.Module) -> Structure:
    def site(n: int) -> Any:
        path = f"layers.{n}"
        act = nn.GELU()
        return ffn_site(net, f"t.{n}.ffn", modality="language", up=f"{path}.fc1", down=f"{path}.fc2", activation=act)

    return Structure((Tower("t", tuple(Block(f"layers.{n}", (site(n),)) for n in range(4))),))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def inputs(number: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(number)
    x, more = (torch.randn(2, 3, 6, generator=random, dtype=torch.float64) for _ in range(2))
    return x, more if number else torch.zeros_like(more)  # nothing is added in the first run


def hooked(net: nn.Module, name: str) -> Tensor:
    total = torch.zeros(net.get_parameter(name).shape[1], dtype=torch.float64)

    def note(_: nn.Module, args: Any, out: Any) -> None:
        total.add_(args[0].detach().square().flatten(0, -2).sum(0))

    handle = net.get_submodule(name.rpartition(".")[0]).register_forward_hook(note)
    with torch.no_grad():
        for number in range(3):
            net(*inputs(number))
    handle.remove()
    return total


def test_statistics_of_a_pruned_walk_are_those_of_whole_runs() -> None:
    torch.manual_seed(0)
    net = Net(torch.add).double()
    runs = [lambda n=n: net(*inputs(n)) for n in range(3)]
    for block, statistics in block_statistics(net, structure_of(net), runs):
        for name, found in statistics.items():
            want = hooked(net, name)
            assert float((found.square_sum - want).abs().max()) <= 1e-12 * float(want.max()), (block.path, name)
        with torch.no_grad():  # the block is pruned before the next one is looked at
            net.get_parameter(f"{block.path}.fc2.weight")[:, ::2] = 0


def test_what_is_no_addition_is_refused() -> None:
    torch.manual_seed(0)
    net = Net(lambda hidden, more: hidden * (1 + more)).double()
    runs = [lambda n=n: net(*inputs(n)) for n in range(3)]
    with pytest.raises(RunFailed, match=r"does more than add to the hidden states before layers\.1"):
        list(block_statistics(net, structure_of(net), runs))
