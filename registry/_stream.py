"""One stream of words and images before a language model, where images differ in the number of their tokens.

An image is a record (`ImageState`): its tokens, where they stand, what is added to them inside the language model. What
stands before a question, its images included, is a `Prefix`. Rows with the same prefix share its keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlbench.nn.caches import with_cache

from ._blip_text import by_length
from ._language import ROWS, Causal, Forced, Ids, Placed, Read, _meta_mask, gathered, hidden_of


class ImageState(NamedTuple):
    """What a vision tower and a projector make of one image.

    tokens: (N, D). positions: int64 (3, N), of time, height and width, counted from where the image begins; None: one
    after another. span: how many positions the image takes (None: N). layers: (N, D) each, added to the image's tokens
    after the first blocks of the language model. words: int64 (N,), the token ids of words that stand among them, and
    -1 where a token is the image's; None: all are. beside: (1, 3, S, S), what is read of it in a prompt with several
    images, in families that read it another way then.
    """

    tokens: Tensor
    positions: Tensor | None = None
    span: int | None = None
    layers: tuple[Tensor, ...] = ()
    words: Tensor | None = None
    beside: Tensor | None = None


class Prefix(NamedTuple):
    """What stands before the words that differ. tokens: (N, D). positions: (3, N) or None. end: the next position.
    image: bool (N,), True = a token of an image. layers: (images' tokens, D) each, as ImageState has them."""

    tokens: Tensor
    positions: Tensor | None
    end: int
    image: Tensor
    layers: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, parts: Sequence[Tensor | ImageState], dtype: torch.dtype) -> Prefix:
        """parts: (n, D) embedded words, and images, in the order of the stream."""
        at, tokens, places, image = 0, [], [], []
        layers: list[list[Tensor]] = []
        grid = any(isinstance(p, ImageState) and p.positions is not None for p in parts)
        for part in parts:
            state = part if isinstance(part, ImageState) else ImageState(part)
            count, device = len(state.tokens), state.tokens.device
            line = torch.arange(count, device=device).expand(3, -1) if state.positions is None else state.positions
            tokens.append(state.tokens.to(dtype))
            places.append(line + at)
            whole = torch.full((count,), isinstance(part, ImageState), device=device)
            image.append(whole if state.words is None else (state.words < 0).to(device))
            layers.append(list(state.layers))
            at += count if state.span is None else state.span
        deep = tuple(torch.cat(level) for level in zip(*(x for x in layers if x), strict=True))
        return cls(torch.cat(tokens), torch.cat(places, 1) if grid else None, at, torch.cat(image), deep)

    @property
    def shift(self) -> int:
        """How far the next position is from the number of tokens."""
        return self.end - len(self.tokens)


class Stream(Causal):
    """net: a decoder of transformers. Prefixes are read once, those of one length together; then prompts of one length
    together, so that nothing is padded."""

    def read(self, images: Any, owner: Tensor, prompts: Ids) -> Iterator[tuple[list[int], Read]]:
        """images: prefixes; owner: int64 (R,), the prefix of each row."""
        slot = owner.tolist()
        for same in by_size(images, slot):
            begun = self._begun([images[i] for i in same])
            rows = [row for row, i in enumerate(slot) if i in set(same)]
            for index, ids in by_length([prompts[row] for row in rows], ROWS):
                chosen = torch.tensor([same.index(slot[rows[i]]) for i in index], device=self.device)
                cache = gathered(begun, chosen)
                logits = self._hidden(ids.to(self.device), cache, images[same[0]].tokens.dtype, last=True)
                yield [rows[i] for i in index], Read(logits, cache)

    def _begun(self, prefixes: Sequence[Prefix]) -> Placed:
        """Keys and values of prefixes of one length."""
        cache = Placed()
        if len(prefixes[0].tokens):
            shown = torch.stack([p.tokens for p in prefixes])
            self.net(
                inputs_embeds=shown, **with_cache(self.net, cache), **self._where(prefixes, 0),
                **self._deep(prefixes, 0), **self._seen(prefixes, shown, [0] * len(prefixes), cache),
            )  # fmt: skip
        if any(p.positions is not None for p in prefixes):
            cache.shift = torch.tensor([p.shift for p in prefixes], device=self.device)
        return cache

    def _hidden(self, ids: Tensor, cache: Any, dtype: torch.dtype | None, *, last: bool = False) -> Tensor:
        embedded = self.embed(ids)
        line = torch.arange(ids.shape[1], device=ids.device) + cache.get_seq_length()
        out = self.net(
            inputs_embeds=embedded.to(dtype or embedded.dtype), **with_cache(self.net, cache),
            **self._next(line, cache.shift),
        )  # fmt: skip
        logits: Tensor = self.head(out.last_hidden_state[:, -1] if last else out.last_hidden_state)
        return logits

    def _next(self, line: Tensor, shift: Tensor | None) -> dict[str, Tensor]:
        """position_ids of words after what a cache has. line: (L,) their numbers in the stream; shift: see Placed."""
        return {} if shift is None else {"position_ids": (line + shift[:, None]).expand(3, -1, -1)}

    def _seen(
        self, prefixes: Sequence[Prefix], inputs: Tensor, read: Sequence[int], cache: Any = None
    ) -> dict[str, Any]:
        """Who sees whom among the tokens of inputs (R, L, D): a prefix and words after it, the first `read` of each row
        its prompt. Nothing: the library's own, that no token sees a later one."""
        return {"attention_mask": _meta_mask(self.net, inputs)}

    def _where(self, prefixes: Sequence[Prefix], more: int) -> dict[str, Tensor]:
        """position_ids (3, R, N + more) of prefixes and as many words after each, where some image has a grid."""
        if all(p.positions is None for p in prefixes):
            return {}
        rows = []
        for p in prefixes:
            device = p.tokens.device
            positions = torch.arange(len(p.tokens), device=device).expand(3, -1) if p.positions is None else p.positions
            rows.append(torch.cat([positions, torch.arange(p.end, p.end + more, device=device).expand(3, -1)], 1))
        return {"position_ids": torch.stack(rows, 1)}

    def _deep(self, prefixes: Sequence[Prefix], more: int) -> dict[str, Any]:
        """What the blocks add to the images' tokens, as Qwen3-VL takes it. On the meta device there are no values by
        which it could pick these tokens, and additions cost no MACs."""
        if self.device.type == "meta" or not any(p.layers for p in prefixes):
            return {}
        masks = [torch.cat([p.image, p.image.new_zeros(more)]) for p in prefixes]
        levels = zip(*(p.layers for p in prefixes if p.layers), strict=True)
        return {"visual_pos_masks": torch.stack(masks), "deepstack_visual_embeds": [torch.cat(x) for x in levels]}

    def forced(self, images: Any, owner: Tensor, prompts: Ids, texts: Ids, row: Sequence[int]) -> Forced:
        """Rows of one length together: nothing is padded. Logits are computed of the tokens that should be told."""
        parts: list[Forced] = []
        slot = [owner.tolist()[r] for r in row]
        for same in by_size(images, slot):
            mine = [i for i, s in enumerate(slot) if s in set(same)]
            for index, ids in by_length([[*prompts[row[i]], *texts[i]] for i in mine], ROWS):
                chosen = [mine[i] for i in index]
                read = [len(prompts[row[i]]) for i in chosen]
                one = self._forced([images[slot[i]] for i in chosen], ids.to(self.device), read)
                parts.append(one._replace(text=torch.tensor(chosen, device=self.device)[one.text]))
        return Forced.of(parts)

    def _forced(self, prefixes: Sequence[Prefix], ids: Tensor, read: Sequence[int]) -> Forced:
        """What is told of the tokens after the first `read` of each row of ids, whose texts are these rows."""
        shown = torch.stack([p.tokens for p in prefixes])
        more = ids.shape[1] - 1
        inputs = torch.cat([shown, self.embed(ids[:, :-1]).to(shown)], 1)
        out = self.net(
            inputs_embeds=inputs, use_cache=False, **self._where(prefixes, more), **self._deep(prefixes, more),
            **self._seen(prefixes, inputs, read),
        )  # fmt: skip
        places = [(n, at) for n, start in enumerate(read) for at in range(start, ids.shape[1])]
        n, at = torch.tensor(places, device=self.device).unbind(1)
        states, spot = out.last_hidden_state, shown.shape[1] + at - 1  # the state that tells the token at `at`
        image = torch.stack([torch.cat([p.image, p.image.new_zeros(more)]) for p in prefixes])
        return Forced(self.head(states[n, spot]), ids[n, at], n, (partial(hidden_of, states, n, spot, image),))


def by_size(prefixes: Sequence[Prefix], used: Sequence[int]) -> list[list[int]]:
    """The numbers of the used prefixes, those of one length together."""
    lengths: dict[int, list[int]] = {}
    for i in sorted(set(used)):
        lengths.setdefault(len(prefixes[i].tokens), []).append(i)
    return list(lengths.values())
