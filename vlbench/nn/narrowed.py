"""What the library's attention classes lack once their heads are cut: which rotary pairs and which values are left.

Both are told by buffers that are no part of the state dict: a saved model stores the kept units, and cutting on reload
restores them.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .caches import cache_in


class Picking:
    """A rotary attention that keeps some of its pairs, and turns them by their own angles: every layer keeps others.

    pairs: int64, the pairs (i, i + width/2) of the original head that this layer still has.
    """

    pairs: Tensor
    whole: int

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if len(self.pairs) < self.whole:
            index = torch.cat([self.pairs, self.pairs + self.whole])
            cos, sin = kwargs["position_embeddings"]
            kwargs["position_embeddings"] = cos[..., index], sin[..., index]
        return super().forward(*args, **kwargs)  # type: ignore[misc]


class Valued:
    """An attention with a QK-norm, whose queries and keys keep their width, and whose values may be narrower.

    values: int64, the dimensions of the original head that its values still have; output: the name of the Linear that
    reads them. The library's forward views values by the width of the queries, so that one of ours takes its place
    once some are gone: keys and values in a cache, and the weighted sum, are as narrow as what was kept.
    """

    values: Tensor
    output: str
    head_dim: int

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(self.values) < self.head_dim:
            return self._narrow(hidden_states, *args, **kwargs)
        return super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]

    def _narrow(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *,
        position_embeddings: tuple[Tensor, Tensor] | None = None, **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """hidden_states: (B, L, D). v: (B, key/value heads, L, kept values)."""
        layer: Any = self
        library: Any = sys.modules[original(type(layer)).__module__]
        sizes = hidden_states.shape[:-1]
        q, k = self._normed(layer.q_proj(hidden_states), "q_norm"), self._normed(layer.k_proj(hidden_states), "k_norm")
        v = layer.v_proj(hidden_states).unflatten(-1, (k.shape[1], len(self.values))).transpose(1, 2)
        if position_embeddings is not None:
            q, k = library.apply_rotary_pos_emb(q, k, *position_embeddings)
        if (cache := cache_in(kwargs)) is not None:
            k, v = cache.update(k, v, layer.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            layer.config._attn_implementation, library.eager_attention_forward
        )
        options = {"sliding_window": layer.sliding_window} if hasattr(layer, "sliding_window") else {}
        if position_embeddings is None:  # an encoder: every token sees every other
            options["is_causal"] = False
        dropped = layer.attention_dropout if layer.training else 0.0
        scale = getattr(layer, "scaling", None) or layer.scale
        out, weights = attend(layer, q, k, v, attention_mask, dropout=dropped, scaling=scale, **options)
        out = getattr(layer, self.output)(out.reshape(*sizes, -1).contiguous())
        return layer.projection_dropout(out) if hasattr(layer, "projection_dropout") else out, weights

    def _normed(self, rows: Tensor, norm: str) -> Tensor:
        """(B, L, heads * width) -> (B, heads, L, width), normalised over each head or over all, as the norm is wide."""
        layer: Any = self
        over = getattr(layer, norm)
        if over.weight.shape[0] == rows.shape[-1] != self.head_dim:
            rows = over(rows).unflatten(-1, (-1, self.head_dim))
        else:
            rows = over(rows.unflatten(-1, (-1, self.head_dim)))
        return rows.transpose(1, 2)


_MADE: dict[str, type[nn.Module]] = {}


def cuttable(cls: type[nn.Module], rotary: bool, valued: bool | str) -> type[nn.Module]:
    """The library's class with Picking and Valued before it, where it is rotary and has a QK-norm."""
    bases = (*([Picking] if rotary else []), *([Valued] if valued else []))
    if not bases:
        return cls
    name = f"Cut{cls.__name__}"
    return _MADE.setdefault(name, type(name, (*bases, cls), {"__module__": __name__}))


def original(cls: type[nn.Module]) -> type[nn.Module]:
    """The library's class of one that was made of it here (`cuttable`, emptied.py); any other as it is."""
    return next(base for base in cls.__mro__ if not base.__module__.startswith(f"{__package__}."))
