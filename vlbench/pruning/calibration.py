"""Capturing what a block is called with, and calling it again: the ground that block-by-block calibration stands on.

Arguments are captured for every block: the originals replay block 0's for all, which is wrong for T5, whose later
blocks get the position bias that block 0 computed (relative output error 0.37 on a three-block toy).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..structure import Block


@dataclass(frozen=True)
class Call:
    """One call of a block. hidden: its input (args[0]); the other arguments are kept by reference."""

    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor


def capture(net: nn.Module, block: Block, run: Callable[[], Any]) -> list[Call]:
    """All calls of `block` in run(), in order (a block may be called several times: two images, two text modes).

    Raises ValueError where a call carries a key-value cache: replayed after a change it would read the old keys.
    """
    calls: list[Call] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        cache = next((k for k in ("past_key_values", "past_key_value") if kwargs.get(k) is not None), None)
        if cache is not None:
            raise ValueError(f"{block.path} is called with {cache}: run the model with use_cache=False")
        named = "" if args else next(iter(kwargs))
        hidden = args[0] if args else kwargs[named]
        rest = {k: v for k, v in kwargs.items() if k != named}
        calls.append(Call(hidden.detach(), args[1:], rest, hidden_of(output).detach()))

    hook = net.get_submodule(block.path).register_forward_hook(note, with_kwargs=True)
    try:
        with torch.no_grad():
            run()
    finally:
        hook.remove()
    return calls


def replay(net: nn.Module, block: Block, call: Call, hidden: Tensor | None = None) -> Tensor:
    """The block's output for a captured call, with another input where `hidden` is given."""
    with torch.no_grad():
        x = call.hidden if hidden is None else hidden
        return hidden_of(net.get_submodule(block.path)(x, *call.args, **call.kwargs))


def hidden_of(output: Any) -> Tensor:
    """The hidden states of a block's output: itself, or the first of a tuple."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found
