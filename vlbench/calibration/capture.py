"""What the blocks of a tower are called with: captured in whole runs, and called again with other hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RunFailed
from ..nn.attend import Shared
from ..nn.caches import cache_in
from ..structure import Block, Structure, Tower
from .activations import Activations

Run = Callable[[], Any]


@dataclass(frozen=True)
class Call:
    """One call of a block. hidden: its input (args[0]); the other arguments are kept by reference. glue: what the model
    added to the output of the block before to make this input; None: nothing."""

    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor
    glue: Tensor | None = None


Captured = list[list[Call]]  # of one run: a list of calls for every block


def capture(net: nn.Module, block: Block, run: Run) -> list[Call]:
    """All calls of `block` in run(), in order (a block may be called several times: two images, two text modes).

    Raises ValueError where a call carries a key-value cache: replayed after a change it would read the old keys.
    """
    return capture_all(net, [block], run)[0]


def capture_all(net: nn.Module, blocks: Sequence[Block], run: Run, *, states: int | None = None) -> Captured:
    """The calls of several blocks in one run(): a list a block. states: of so many blocks the hidden states are kept
    (of all where it is left out): a tower's would be as much as training needs."""
    calls: Captured = [[] for _ in blocks]
    chain = _Chain()
    hooks = [
        net.get_submodule(block.path).register_forward_hook(
            _noter(block, calls_of_block, number, chain, keep=states is None or number < states), with_kwargs=True
        )
        for number, (block, calls_of_block) in enumerate(zip(blocks, calls, strict=True))
    ]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return calls


class _Chain:
    """The output of the block that was called last, which the next one is expected to be given."""

    def __init__(self) -> None:
        self.number, self.output = -1, _NONE

    def glue(self, number: int, hidden: Tensor) -> Tensor | None:
        """What the input of block `number` has more than the output of the block before it."""
        before = self.output
        if self.number != number - 1 or before.shape != hidden.shape or before.data_ptr() == hidden.data_ptr():
            return None
        more = hidden - before.to(hidden.device)
        return more if bool(more.any()) else None

    def called(self, number: int, output: Tensor) -> None:
        self.number, self.output = number, output


def _noter(block: Block, calls: list[Call], number: int, chain: _Chain, *, keep: bool) -> Callable[..., None]:
    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if cache_in(kwargs) is not None:
            raise ValueError(f"{block.path} is called with a key-value cache: run the model with use_cache=False")
        named = "" if args else next(iter(kwargs))
        hidden = args[0] if args else kwargs[named]
        rest = {k: _uncached(v) for k, v in kwargs.items() if k != named}
        glue = chain.glue(number, hidden.detach())
        chain.called(number, hidden_of(output).detach())
        hidden, out = (hidden.detach(), chain.output) if keep else (_NONE, _NONE)
        calls.append(Call(hidden, tuple(map(_uncached, args[1:])), rest, out, glue))

    return note


def replay(net: nn.Module, block: Block, call: Call, hidden: Tensor | None = None) -> Tensor:
    """The block's output for a captured call, with another input where `hidden` is given."""
    with torch.no_grad():
        x = call.hidden if hidden is None else hidden
        return hidden_of(net.get_submodule(block.path)(x, *call.args, **call.kwargs))


def hidden_of(output: Any) -> Tensor:
    """The hidden states of a block's output: itself, or the first of a tuple."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _uncached(value: Any) -> Any:
    """Shared states remember the keys they were projected to; a replay after pruning must project them anew."""
    if isinstance(value, Shared):
        return value.uncached()
    return tuple(map(_uncached, value)) if isinstance(value, tuple) else value


_NONE = torch.empty(0)


# What lies beside the hidden states ---------------------------------------------------------------------------------

LARGE = 1 << 16  # bytes. T5's position bias of 512 tokens has 33 MB, and each calibration sample has its own.


@dataclass(frozen=True)
class _PutAway:
    """Stands for a tensor among the arguments of a call."""

    at: tuple[int, int]


def put_away(calls: Captured, number: int, sides: Activations) -> Captured:
    """The calls of run `number` with their large arguments in `sides`, each once however many blocks are given it.
    Views (an expanded mask) stay as they are, for put away they would become as large as they look, and so do tensors
    of another device than that which `sides` gives back."""
    places: dict[int, tuple[int, int]] = {}

    def put(value: Tensor) -> Any:
        if value.nbytes < LARGE or not value.is_contiguous() or value.device != sides.device:
            return value
        if id(value) not in places:
            places[id(value)] = (number, len(places))
            sides.put(places[id(value)], value)
        return _PutAway(places[id(value)])

    return [[_with_arguments(call, Tensor, put) for call in block] for block in calls]


def fetched(call: Call, sides: Activations) -> Call:
    """The call with the tensors that were put away."""
    return _with_arguments(call, _PutAway, lambda stand_in: sides.get(stand_in.at))


def _with_arguments(call: Call, kind: type, change: Callable[[Any], Any]) -> Call:
    """Every argument of that kind changed, also in tuples."""

    def changed(value: Any) -> Any:
        if type(value) is tuple:
            return tuple(map(changed, value))
        return change(value) if isinstance(value, kind) else value

    kwargs = {k: changed(v) for k, v in call.kwargs.items()}
    return replace(call, args=changed(call.args), kwargs=kwargs, glue=changed(call.glue))


# A tower at a time --------------------------------------------------------------------------------------------------


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
    after = structure.towers[structure.towers.index(tower) + 1 :]
    shortcut = _Shortcut(net, [*blocks, *(b for t in after for b in t.blocks)], finished)
    captured: list[Captured] = []
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
        for index, call in enumerate(calls[0]):
            hidden.put((number, index), call.hidden)
        bare = [[replace(call, hidden=_NONE, output=_NONE) for call in block] for block in calls]
        captured.append(put_away(bare, number, sides))
    return captured


def _glued(calls: Captured) -> bool:
    return any(call.glue is not None for block in calls for call in block)


def _refuse_other_glue(net: nn.Module, blocks: Sequence[Block], run: Run, calls: Captured) -> None:
    """Raise RunFailed where what lies between the blocks depends on their hidden states: then it is no addition, and
    another after a block is pruned. Blocks that hand their input on are given other states, and the same additions."""
    shortcut = _Shortcut(net, blocks, [])
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


class _Shortcut:
    """Runs in which `passing` blocks hand their input on and `finished` towers give out their known outputs."""

    def __init__(self, net: nn.Module, passing: Sequence[Block], finished: Sequence[Finished]) -> None:
        self.net, self.passing, self.finished = net, passing, finished
        self._tuples: dict[str, bool] = {}  # block -> whether it answers with a tuple of one
        self._odd = False  # a block answers with more than hidden states of its input's shape

    @property
    def _all(self) -> list[Block]:
        return [*self.passing, *(b for one in self.finished for b in one.tower.blocks)]

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
        for one in self.finished:
            self._put(one.tower.blocks[-1], one.outputs, number)
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
