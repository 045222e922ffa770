"""Whole layers as units: which of a tower's blocks stay. The unit is called "block", and its key in a cut is
`TOWER.blocks`, whose units are the tower's blocks in order of data flow.

A block is y = x + f(x) + ...; without it y = x. Its gate g acts on all that it adds at once, y = x + g (block(x) - x),
which is the same for towers that normalise before a layer and for those that normalise after it (BERT), where gating
the branches one by one would leave a norm behind. At g = 0 the gated model equals the cut one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..structure import Block, Structure, Tower

UNIT = "block"


def key_of(tower: Tower) -> str:
    """The name under which the blocks of a tower are kept in a cut."""
    return f"{tower.name}.blocks"


def entries(block: Block) -> int:
    """Entries of the prunable set that go with the block."""
    shapes = {name: shape for site in block.sites for name, shape in site.matrices.items()}
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def reads_another(block: Block) -> bool:
    """Whether the block reads another tower by cross-attention."""
    return any(site.modality == "cross" for site in block.sites)


def refusal(tower: Tower, kept: Sequence[int]) -> str:
    """Why the tower cannot be left with these of its blocks, in a few words; empty where it can."""
    stays = set(kept)
    if not stays:
        return "one block has to stay"
    for index, block in enumerate(tower.blocks):
        if index not in stays and block.refusal:
            return f"block {index} has to stay: {block.refusal}"
    reading = {index for index, block in enumerate(tower.blocks) if reads_another(block)}
    if reading and not reading & stays:
        return "one block with cross-attention has to stay, or nothing reaches this tower from the one it reads"
    return ""


def drop_blocks(net: nn.Module, tower: Tower, kept: Tensor) -> None:
    """Keep only these blocks of a tower, and number the rest anew. Raises UserError where that cannot be done."""
    stays = kept.tolist()
    if why := refusal(tower, stays):
        raise UserError(f"the tower {tower.name} cannot lose these blocks: {why}.")
    layers: Any = net.get_submodule(tower.blocks[0].path.rpartition(".")[0])
    for index in sorted(set(range(len(tower.blocks))) - set(stays), reverse=True):
        del layers[index]
    for number, layer in enumerate(layers):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):  # where a key-value cache keeps this layer's keys
                module.layer_idx = number
    if tower.after_drop is not None:
        tower.after_drop(net, kept)


def original_blocks(cuts: Sequence[Mapping[str, tuple[str, list[int]]]], original: Structure) -> dict[str, list[int]]:
    """Tower -> the numbers in the dense model of the blocks it has now. cuts: of `Cut.sites`, in order; original: the
    structure of the dense model."""
    numbers = {tower.name: list(range(len(tower.blocks))) for tower in original.towers}
    for sites in cuts:
        for tower in original.towers:
            if key_of(tower) in sites:
                numbers[tower.name] = [numbers[tower.name][i] for i in sites[key_of(tower)][1]]
    return numbers


def choose_blocks(
    structure: Structure, importance: Mapping[str, Tensor], fraction: float, *, uniform: bool = False
) -> dict[str, Tensor]:
    """The blocks that stay: of all towers together (or of each, where uniform) the least important go until what is
    removed is nearest to `fraction` of the prunable set. Of equal importance the later one goes first.

    importance: tower -> (blocks,), larger = more important. Raises UserError, naming the reachable maximum, where the
    blocks that may go are not enough.
    """
    kept = {tower.name: list(range(len(tower.blocks))) for tower in structure.towers}
    for part in [Structure((t,)) for t in structure.towers] if uniform else [structure]:
        order = sorted(
            ((float(importance[t.name][i]), -i, n) for n, t in enumerate(part.towers) for i in range(len(t.blocks)))
        )
        target, gone = fraction * part.size, 0.0
        for _, minus, number in order:
            tower, index = part.towers[number], -minus
            cost = entries(tower.blocks[index])
            if abs(gone + cost - target) > abs(gone - target):
                continue
            rest = [i for i in kept[tower.name] if i != index]
            if not refusal(tower, rest):
                kept[tower.name], gone = rest, gone + cost
        _refuse_short(part, target, gone)
    return {key_of(t): torch.tensor(kept[t.name], dtype=torch.long) for t in structure.towers}


def _refuse_short(part: Structure, target: float, gone: float) -> None:
    largest = max(entries(block) for tower in part.towers for block in tower.blocks)
    if target - gone > largest / 2:  # nearer would be one that has to stay
        raise UserError(
            f"sparsity {target / part.size:.4g} cannot be reached with whole blocks of "
            f"{', '.join(t.name for t in part.towers)}: at most {gone / part.size:.4f}."
        )


class BlockGates:
    """One gate a block, 1.0 at first: `value[tower]` is a leaf tensor of shape (blocks,)."""

    def __init__(self, net: nn.Module, structure: Structure) -> None:
        parameter = next(net.parameters())
        self.value: dict[str, Tensor] = {}
        self._gated: list[nn.Module] = []
        for tower in structure.towers:
            gate = torch.ones(len(tower.blocks), device=parameter.device, dtype=parameter.dtype, requires_grad=True)
            self.value[tower.name] = gate
            for index, block in enumerate(tower.blocks):
                module = net.get_submodule(block.path)
                module.forward = _gated(module.forward, gate, index)
                self._gated.append(module)

    def set(self, values: Mapping[str, Tensor]) -> None:
        """Write gate values."""
        with torch.no_grad():
            for name, value in values.items():
                self.value[name].copy_(value)

    def remove(self) -> None:
        """Take the gates off again."""
        for module in self._gated:
            del module.forward
        self._gated = []


def _gated(forward: Callable[..., Any], gate: Tensor, index: int) -> Callable[..., Any]:
    def gated(*args: Any, **kwargs: Any) -> Any:
        hidden: Tensor = args[0] if args else next(iter(kwargs.values()))
        output = forward(*args, **kwargs)
        states: Tensor = output[0] if isinstance(output, tuple) else output
        states = hidden + gate[index].to(states.dtype) * (states - hidden)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    return gated
