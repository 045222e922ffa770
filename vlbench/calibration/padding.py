"""Which tokens of a block's inputs are padding, as the block's own masks say: their numbers are no statistics."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import RunFailed
from ..nn.attend import Shared
from ..structure import Block, Mask

NEVER = -9999.0  # added to a logit, this and less means: not seen (BLIP adds -10,000, others the type's lowest number)


class Padding:
    """Which tokens of one call's inputs are real. Raises RunFailed where the call carries a mask of which the block
    does not say what it marks."""

    def __init__(self, module: nn.Module, block: Block, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.own: list[Tensor] = []  # (batch, tokens) of the block's own stream
        self.others: list[tuple[Tensor, Tensor]] = []  # states of another tower, and theirs
        named = {**_positional(module, args), **kwargs}
        self._refuse_unnamed(block, named)
        for mask in block.masks:
            if isinstance(value := named.get(mask.argument), Tensor):
                states = named.get(mask.of) if mask.of else None
                if isinstance(states, Tensor):
                    self.others.append((states, _visible(value, mask)))
                elif not mask.of:
                    self.own.append(_visible(value, mask))
        for value in named.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                if isinstance(part, Shared) and part.mask is not None:
                    self.others.append((part.states, part.mask[:, 0, 0, :]))

    @staticmethod
    def _refuse_unnamed(block: Block, named: Mapping[str, Any]) -> None:
        said = {mask.argument for mask in block.masks}
        for name, value in named.items():
            if "mask" in name and isinstance(value, Tensor) and name not in said:
                raise RunFailed(
                    f"{block.path} is called with {name}, and its family does not say which tokens that leaves out: "
                    f"write masks=(Mask({name!r}),) where the family makes its Block."
                )

    def real(self, x: Tensor) -> Tensor | None:
        """(batch, tokens) for an input of that shape, or None where all of it is real."""
        if x.ndim != 3:
            return None
        for states, visible in self.others:
            if states.data_ptr() == x.data_ptr() and states.shape == x.shape:
                return _fitting(visible, x)
        masks = [
            mask for mask in self.own if (fitting := _fitting(mask, x)) is not None and fitting.shape == x.shape[:2]
        ]
        return _fitting(masks[0], x) if masks else None


def _positional(module: nn.Module, args: tuple[Any, ...]) -> dict[str, Any]:
    """Positional arguments under their names (transformers hands T5's masks on by position)."""
    try:
        names = [p.name for p in inspect.signature(module.forward).parameters.values()]
    except (TypeError, ValueError):
        return {}
    return dict(zip(names, args, strict=False))


def _visible(value: Tensor, mask: Mask) -> Tensor:
    """(batch or 1, tokens), True where some query sees the token."""
    if mask.form == "tokens":
        return value > 0
    visible = value > NEVER if value.is_floating_point() else value > 0  # (batch, ..., queries, tokens)
    return visible.flatten(1, -2).any(1) if visible.ndim > 2 else visible.any(0, keepdim=True)


def _fitting(mask: Tensor, x: Tensor) -> Tensor | None:
    if mask.shape[-1] != x.shape[1] or mask.shape[0] not in (1, x.shape[0]):
        return None
    mask = mask.expand(x.shape[0], -1).to(x.device)  # (batch, tokens)
    return None if bool(mask.all()) else mask
