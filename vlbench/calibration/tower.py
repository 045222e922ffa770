"""The calls of a whole tower's blocks in every run, taken without computing what the blocks of the tower compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RunFailed
from ..nn.attend import Shared
from ..structure import Block, Structure, Tower
from .activations import Activations
from .capture import NONE, Captured, Run, capture_all, put_away


@dataclass
class Finished:
    """A tower that is pruned, and what it gives out: (run, call) -> hidden states after its last block."""

    tower: Tower
    outputs: Activations


def capture_tower(
    net: nn.Module,
    structure: Structure,
    tower: Tower,
    first: int,
    runs: Sequence[Run],
    finished: Sequence[Finished],
    hidden: Activations,
    sides: Activations,
) -> list[Captured]:
    """What the blocks from `first` on are called with in every run; the inputs of the first of them go to `hidden`,
    large arguments beside them to `sides` (see `fetched`).

    A capture needs the arguments of every block, and not what the blocks compute. So that it does not cost a forward
    pass of the whole model for each tower, blocks hand their input on, and pruned towers give out what is known of
    them. That is only done where the first run shows that the arguments then are the same to the bit, and where the
    model adds nothing between the blocks. Raises RunFailed where what it does there is no addition.
    """
    blocks = tower.blocks[first:]
    captured: list[Captured] = []
    for number, calls in enumerate(_calls_of_runs(net, structure, tower, blocks, runs, finished)):
        for index, call in enumerate(calls[0]):
            hidden.put((number, index), call.hidden)
        bare = [[replace(call, hidden=NONE, output=NONE) for call in block] for block in calls]
        captured.append(put_away(bare, number, sides))
    return captured


def _calls_of_runs(
    net: nn.Module, structure: Structure, tower: Tower, blocks: Sequence[Block], runs: Sequence[Run],
    finished: Sequence[Finished],
) -> Iterator[Captured]:  # fmt: skip
    """The blocks' calls in each run, by the shortcut where the first run shows that it gives the same."""
    after = structure.towers[structure.towers.index(tower) + 1 :]
    shortcut = Shortcut(net, [*blocks, *(b for t in after for b in t.blocks)], finished)
    quick = checked = False
    for number, run in enumerate(runs):
        if number == 0:
            with shortcut.watched():
                calls = capture_all(net, blocks, run, states=1)
            quick = not _glued(calls) and shortcut.possible() and shortcut.agrees(blocks, run, calls)
        elif quick:
            with shortcut.taken(number):
                calls = capture_all(net, blocks, run, states=1)
            if _glued(calls):  # the first run had none (a sample without an image): what is added is not the true one
                quick, calls = False, capture_all(net, blocks, run, states=1)
        else:
            calls = capture_all(net, blocks, run, states=1)
        if _glued(calls) and not checked:
            checked = True
            _refuse_other_glue(net, blocks, run, calls)
        yield calls


def _glued(calls: Captured) -> bool:
    return any(call.glue is not None for block in calls for call in block)


def _refuse_other_glue(net: nn.Module, blocks: Sequence[Block], run: Run, calls: Captured) -> None:
    """Raise RunFailed where what lies between the blocks depends on their hidden states: then it is no addition, and
    another after a block is pruned. Blocks that hand their input on are given other states, and the same additions."""
    shortcut = Shortcut(net, blocks, [])
    with shortcut.watched():
        run()
    with shortcut.taken(0):
        other = capture_all(net, blocks, run, states=1)
    for block, ours, theirs in zip(blocks, calls, other, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            if a.glue is None and b.glue is None:
                continue
            x, y = (torch.zeros(1) if c.glue is None else c.glue for c in (a, b))
            if x.shape != y.shape or float((x - y).abs().max()) > 0.02 * float(x.abs().max()):
                raise RunFailed(
                    f"the model does more than add to the hidden states before {block.path}: block by block, nothing "
                    "is known of what its blocks are given after one is pruned."
                )


class Shortcut:
    """Runs in which `passing` blocks hand their input on and `finished` towers give out their known outputs."""

    def __init__(self, net: nn.Module, passing: Sequence[Block], finished: Sequence[Finished]) -> None:
        self.net, self.passing, self.finished = net, passing, finished
        self._tuples: dict[str, bool] = {}  # block -> whether it answers with a tuple of one
        self._odd = False  # a block answers with more than hidden states of its input's shape

    @property
    def _all(self) -> list[Block]:
        return [*self.passing, *(b for walked in self.finished for b in walked.tower.blocks)]

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Learn from an ordinary run what the blocks answer."""

        def look(path: str) -> Callable[..., None]:
            def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                single = isinstance(output, tuple) and len(output) == 1
                states = output[0] if single else output
                self._tuples[path] = single
                shape = _hidden(args, kwargs).shape
                self._odd |= not isinstance(states, Tensor) or states.shape != shape

            return note

        modules = [(b.path, self.net.get_submodule(b.path)) for b in self._all]
        hooks = [module.register_forward_hook(look(path), with_kwargs=True) for path, module in modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def possible(self) -> bool:
        return not self._odd and not any("forward" in vars(self.net.get_submodule(b.path)) for b in self._all)

    def agrees(self, blocks: Sequence[Block], run: Run, calls: Captured) -> bool:
        """Whether the first run captures the same this way."""
        try:
            with self.taken(0):
                quick = capture_all(self.net, blocks, run, states=1)
        except Exception:
            # The model does more with its blocks than to chain them, and stumbles over the short way with whatever its
            # code raises (shapes, missing keys, checks of its own). The plain way is left, and raises what is wrong.
            return False
        return all(
            len(a) == len(b)
            and all(_same(x.args, y.args) and _same(x.kwargs, y.kwargs) for x, y in zip(a, b, strict=True))
            for a, b in zip(calls, quick, strict=True)
        ) and all(torch.equal(x.hidden, y.hidden) for x, y in zip(calls[0], quick[0], strict=True))

    @contextmanager
    def taken(self, number: int) -> Iterator[None]:
        """Run `number` goes the short way inside the with-statement."""
        for block in self._all:
            self._put(block, None, number)
        for walked in self.finished:
            self._put(walked.tower.blocks[-1], walked.outputs, number)
        try:
            yield
        finally:
            for block in self._all:
                del self.net.get_submodule(block.path).forward

    def _put(self, block: Block, outputs: Activations | None, number: int) -> None:
        single = self._tuples.get(block.path, False)
        count = iter(range(1 << 62))

        def forward(*args: Any, **kwargs: Any) -> Any:
            out = _hidden(args, kwargs) if outputs is None else outputs.get((number, next(count)))
            return (out,) if single else out

        self.net.get_submodule(block.path).forward = forward


def _hidden(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    hidden: Tensor = args[0] if args else next(iter(kwargs.values()))
    return hidden


def _same(a: Any, b: Any) -> bool:
    """Equal to the bit, tensors inside included."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, Shared):
        return isinstance(b, Shared) and all(
            _same(x, y) for x, y in ((a.states, b.states), (a.owner, b.owner), (a.mask, b.mask))
        )
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(_same(v, b[k]) for k, v in a.items())
    return a is b or bool(a == b)
