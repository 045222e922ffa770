"""A library's attention of which every unit is gone: what is left is the bias of its output.

The library views heads as (..., heads, width) and lets torch find one of the sizes, which nothing can of no elements.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .caches import cache_in


class Emptied:
    """Before the library's class, whose forward it takes the place of. sizes: heads and key/value heads, as they were;
    output: the name of its last Linear; alone: whether it gives its states without attention weights."""

    sizes: tuple[int, int]
    output: str
    alone: bool

    def forward(self, hidden_states: Tensor, *_: Any, **words: Any) -> Any:
        cache: Any = cache_in(words)
        if cache is not None:  # it counts what was read by its layers, this one among them
            nothing = hidden_states[:, None, :, :0]  # (B, 1, L, 0)
            cache.update(nothing, nothing, self.layer_idx)  # type: ignore[attr-defined]
        linear: nn.Module = self.get_submodule(self.output)  # type: ignore[attr-defined]
        states: Tensor = linear(hidden_states[..., :0])
        return states if self.alone else (states, None)


_MADE: dict[type[nn.Module], type[nn.Module]] = {}


def empty(layer: nn.Module, sizes: tuple[int, int], output: str, *, alone: bool) -> None:
    """Make `layer` an emptied one; parameters and keys stay."""
    cls = type(layer)
    if issubclass(cls, Emptied):
        return
    if cls not in _MADE:
        _MADE[cls] = type(f"Emptied{cls.__name__}", (Emptied, cls), {"__module__": __name__})
    layer.__class__ = _MADE[cls]
    vars(layer).update(sizes=sizes, output=output, alone=alone)
