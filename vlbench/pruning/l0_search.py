"""The L0 search as a hook of training: gates on units of every kind, their parameters and their multipliers.

Formulas: hard_concrete.py. What is searched and what is done with it is the method's (methods/l0.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from ..compression.cut import Kept
from ..compression.depth import UNIT as BLOCK
from ..compression.depth import BlockGates, key_of, refusal
from ..compression.gates import Gates
from ..compression.width import UNIT as WIDTH
from ..compression.width import WidthGates, nearest_share, rounded
from ..structure import Structure
from ..training.hooks import Hook, NotFiniteError, Own
from . import hard_concrete as hc

SITES = "site"  # heads and neurons
KINDS = (SITES, BLOCK, WIDTH)


class Wanted(Protocol):
    """The options that the search reads."""

    initial: float
    target: Literal["shape", "size"]
    target_warmup: float
    mask_lr: float
    multiplier_lr: float
    lr: float
    steps: int

    @property
    def kinds(self) -> tuple[str, ...]: ...
    @property
    def fraction(self) -> float: ...


class Search(Hook):
    """Draws the gates before every step, and gives a and the multipliers their gradients after the backward pass."""

    def __init__(
        self, net: nn.Module, structure: Structure, options: Wanted, sizes: Mapping[str, tuple[str, int]],
        counts: Mapping[str, int], *, seed: int,
    ) -> None:  # fmt: skip
        self.structure, self.options, self.sizes, self.counts = structure, options, dict(sizes), dict(counts)
        self.sites = Gates(net, structure) if SITES in options.kinds else None
        self.widths = WidthGates(net, structure) if WIDTH in options.kinds else None
        self.blocks = BlockGates(net, structure) if BLOCK in options.kinds else None
        device = next(net.parameters()).device
        random = torch.Generator().manual_seed(seed)
        self.a = {
            key: (options.initial + 0.01 * torch.randn(size, generator=random)).to(device).requires_grad_(True)
            for key, (_, size) in sizes.items()
        }
        groups = ["size"] if options.target == "size" else dict.fromkeys(self._group(key) for key in sizes)
        self.pairs = {group: hc.Pair.zeros(device) for group in groups}
        self._uniform: dict[str, Tensor] = {}

    def _group(self, key: str) -> str:
        """What shares a pair of multipliers: attention and feed-forward sites of a tower, its width, its depth."""
        kind, _ = self.sizes[key]
        if kind != SITES:
            return key
        return f"{key.partition('.')[0]}.{self.structure.site(key).kind}"

    def gates(self) -> dict[str, Tensor]:
        """Key of a cut -> the leaf tensor of its gates' values."""
        values: dict[str, Tensor] = {} if self.sites is None else dict(self.sites.value)
        values |= {} if self.widths is None else self.widths.value
        if self.blocks is not None:
            values |= {key_of(tower): self.blocks.value[tower.name] for tower in self.structure.towers}
        return values

    def own(self) -> list[Own]:
        options = self.options
        multipliers = [tensor for pair in self.pairs.values() for tensor in (pair.first, pair.second)]
        return [
            Own(list(self.a.values()), options.mask_lr / options.lr, clipped=True),
            Own(multipliers, options.multiplier_lr / options.lr, ascends=True, clipped=True),
        ]

    def leaves(self) -> list[Tensor]:
        return list(self.gates().values())

    def before_step(self, step: int) -> None:
        for key, gate in self.gates().items():
            hc.clamp(self.a[key])
            self._uniform[key] = hc.uniform_like(self.a[key].detach())
            with torch.no_grad():
                gate.copy_(hc.drawn(self.a[key], self._uniform[key]))

    def after_backward(self, step: int) -> None:
        total = self.lagrangian(step)
        for key, gate in self.gates().items():
            gradient = torch.zeros_like(gate) if gate.grad is None else gate.grad
            if not bool(gradient.isfinite().all()):
                raise NotFiniteError(f"a gate gradient of {key}")
            total = total + (hc.drawn(self.a[key], self._uniform[key]) * gradient.to(self.a[key].dtype)).sum()
            gate.grad = None
        total.backward()

    def lagrangian(self, step: int) -> Tensor:
        """Of the target that the step has."""
        options = self.options
        warmup = round(options.target_warmup * options.steps)
        if options.target == "size":
            left = hc.expected_entries(self.structure, {k: hc.keep_probability(a) for k, a in self.a.items()})
            return self.pairs["size"].term(
                1 - left / self.structure.size - hc.target_at(options.fraction, step, warmup)
            )
        rows: dict[str, list[Tensor]] = {}
        for key, a in self.a.items():
            target = 1 - self.counts[key] / len(a)
            rows.setdefault(self._group(key), []).append(hc.expected_sparsity(a) - hc.target_at(target, step, warmup))
        return torch.stack([self.pairs[group].term(torch.stack(excess)) for group, excess in rows.items()]).sum()

    def expected_left(self) -> float:
        """The share of the prunable set that is expected to stay."""
        left = hc.expected_entries(self.structure, {k: hc.keep_probability(a.detach()) for k, a in self.a.items()})
        return float(left) / self.structure.size

    def settled_counts(self) -> dict[str, int]:
        """Of target=size: how many units are expected to stay, all moved by one factor until the target is met."""
        expected = {k: float(hc.keep_probability(a.detach()).sum()) for k, a in self.a.items()}

        def at(share: float) -> dict[str, Tensor]:
            return {k: torch.arange(rounded(n * 2 * share, len(self.a[k]), 1)) for k, n in expected.items()}

        return {k: len(v) for k, v in nearest_share(self.structure, at, self.options.fraction).items()}

    def kept(self, counts: Mapping[str, int]) -> Kept:
        """The units of largest a, as many as counts says; of blocks, only those go that may."""
        keep: Kept = {}
        for tower in self.structure.towers:
            if (key := key_of(tower)) in self.a:
                alive = list(range(len(tower.blocks)))
                for index in self.a[key].detach().cpu().sort(stable=True).indices.tolist():
                    rest = [i for i in alive if i != index]
                    if len(alive) > counts[key] and not refusal(tower, rest):
                        alive = rest
                keep[key] = torch.tensor(alive)
        for key in self.a.keys() - keep.keys():
            soft = hc.settled(self.a[key].detach().cpu(), len(self.a[key]) - counts[key])
            keep[key] = soft.nonzero().flatten()
        return {key: keep[key] for key in self.a}

    def finish(self, keep: Kept) -> None:
        """Take the gates off; those of sites are left in their weights."""
        if self.blocks is not None:
            self.blocks.remove()
        if self.widths is not None:
            self.widths.remove()
        if self.sites is not None:
            values = {k: hc.settled(self.a[k].detach(), len(self.a[k]) - len(keep[k])) for k in self.sites.value}
            self.sites.set(values)
            self.sites.fold()

    def state(self) -> dict[str, Tensor]:
        state = {f"a.{key}": a.detach() for key, a in self.a.items()}
        for key, pair in self.pairs.items():
            state |= {f"first.{key}": pair.first.detach(), f"second.{key}": pair.second.detach()}
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for key, a in self.a.items():
                a.copy_(state[f"a.{key}"])
            for key, pair in self.pairs.items():
                pair.first.copy_(state[f"first.{key}"])
                pair.second.copy_(state[f"second.{key}"])
