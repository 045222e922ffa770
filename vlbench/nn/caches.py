"""Key-value caches of transformers, whatever a version calls the argument that carries them.

It was `past_key_values` up to 5.23 and is `cache` from 5.24. An attention that waits for one word and swallows the rest
loses its cache without an error, and the model answers something else: so a cache that we are given is known by what it
is, and one that we give goes by the callee's own word.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from torch import nn


def cache_in(words: Mapping[str, Any]) -> Any:
    """The cache among the keyword arguments of an attention or a block; None where there is none."""
    return next((value for value in words.values() if hasattr(value, "get_seq_length")), None)


def with_cache(model: nn.Module, held: Any) -> dict[str, Any]:
    """Keyword arguments that hand a model a cache, or tell it to make none."""
    return {_word(type(model).forward): held, "use_cache": held is not None}


@cache
def _word(forward: Callable[..., Any]) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"
