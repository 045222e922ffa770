"""What the blocks of a tower are called with: captured in whole runs, and called again with other hidden states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.attend import Shared
from ..nn.caches import cache_in
from ..structure import Block
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
        self.number, self.output = -1, NONE

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
        hidden, out = (hidden.detach(), chain.output) if keep else (NONE, NONE)
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


NONE = torch.empty(0)  # stands for hidden states that are not kept


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
