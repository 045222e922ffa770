"""The one attention function, and encoder states that many query rows share."""

from __future__ import annotations

from copy import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(scale * q k^T + mask) v for q (B, H, Lq, d), k and v (B, K, Lk, d) with H a multiple of K heads.

    mask: additive float or boolean (True = visible), broadcast to (B, H, Lq, Lk). `causal` is aligned to the top left.
    """
    if q.shape[-1] == 0 or q.shape[1] == 0:  # every unit of the site is gone
        return q
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal,
        scale=scale,
        enable_gqa=bool(q.shape[1] != k.shape[1]),  # under torch.jit.trace sizes are tensors
    )


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, H * d) -> (B, H, L, d); d is whatever is left of the head after cutting."""
    batch, length, size = x.shape
    width = size // heads if heads else 0  # every head is gone
    return x.reshape(batch, length, heads, width).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, L, d) -> (B, L, H * d)."""
    return x.transpose(1, 2).flatten(2)


class Shared:
    """Encoder states (I, N, D) read by many query rows: row r attends to states[owner[r]].

    Keys and values are computed once per state and projection, and the queries of one state are folded into the
    length axis instead of repeating keys and values for them (research: folding costs a fifth of gathering). Passed
    wherever a library expects `encoder_hidden_states`.

    owner: int64 (R,), in any order. mask: (I, N), True = visible, or None. A batch of R * b rows (beam search) is
    read as b consecutive rows per owner entry. An owner on the CPU is looked at there, where that of a device would be
    waited for. uneven: whether the mask hides anything, for the same reason, where the caller knows.
    """

    def __init__(
        self, states: Tensor, owner: Tensor, mask: Tensor | None = None, *, cache: bool = True,
        uneven: bool | None = None,
    ) -> None:  # fmt: skip
        self.states, self.cache = states, cache
        hides = mask is not None and (not bool(mask.all()) if uneven is None else uneven)
        self.mask = mask.bool()[:, None, None, :] if mask is not None and hides else None
        self._keys: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._read_by(owner)

    @classmethod
    def among(cls, states: Tensor, owner: Tensor, mask: Tensor | None = None, *, cache: bool = True) -> Shared:
        """Of the states only those that `owner` names: one that no row reads costs no keys."""
        used, index = owner.unique(return_inverse=True)
        if len(used) < len(states):
            there = used.to(states.device)
            states, mask = states[there], None if mask is None else mask[there]
        return cls(states, index, mask, cache=cache)

    def _read_by(self, owner: Tensor) -> None:
        """Find the slot of each row where the rows of one state stand together, as many slots a state as the most
        read one has rows. Sorted owners with as many rows each (`even`) need no moving about."""
        self.owner = owner
        counts = torch.bincount(owner, minlength=len(self.states))  # (I,) rows of each state
        self._per_state = int(counts.max())
        self.even = bool((counts == self._per_state).all() & (owner.diff() >= 0).all())
        if not self.even:
            order = owner.argsort(stable=True)
            first = counts.cumsum(0) - counts  # (I,) place of each state's first row
            rank = torch.empty_like(owner)  # (R,) which of its state's rows a row is
            rank[order] = torch.arange(len(owner), device=owner.device) - first[owner[order]]
            self._slot = (owner * self._per_state + rank).to(self.states.device)

    def read_by(self, owner: Tensor) -> Shared:
        """The same states and their remembered keys, read by other rows."""
        other = copy(self)
        other._read_by(owner)
        return other

    def uncached(self) -> Shared:
        """The same states without remembered keys: for calling a block again after its weights have changed."""
        mask = None if self.mask is None else self.mask[:, 0, 0, :]  # (I, N)
        return Shared(self.states, self.owner, mask, cache=False)

    def keys_values(self, key: nn.Module, value: nn.Module, heads: int) -> tuple[Tensor, Tensor]:
        """(I, heads, N, d) keys and values of every state, projected once."""
        projected = self._keys.get(key)
        if projected is None:
            projected = split_heads(key(self.states), heads), split_heads(value(self.states), heads)
            if self.cache and not torch.is_grad_enabled():
                self._keys[key] = projected
        return projected

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, dropout: float = 0.0) -> Tensor:
        """q (R * b, H, L, d) -> (R * b, H, L, d), every row against the keys of its own state."""
        rows, heads, length, width = q.shape
        if not heads * width:
            return q
        beams = rows // len(self.owner)
        if not self.even:
            slot = self._slot.to(q.device)  # a model may be split over devices
            padded = q.new_zeros((self.states.shape[0] * self._per_state, beams * heads * length * width))
            q = padded.index_copy(0, slot, q.reshape(len(self.owner), -1))
        per_state = self._per_state * beams
        folded = q.reshape(-1, per_state, heads, length, width).transpose(1, 2).flatten(2, 3)  # (I, H, rows * L, d)
        mask = None if self.mask is None else self.mask.to(q.device)
        out = attend(folded, k, v, scale=scale, mask=mask, dropout=dropout)
        out = out.reshape(-1, heads, per_state, length, width).transpose(1, 2)  # (I, rows, H, L, d)
        if not self.even:
            out = out.reshape(self.states.shape[0] * self._per_state, -1)[slot]
        return out.reshape(rows, heads, length, width)
