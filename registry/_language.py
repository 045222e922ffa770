"""Language models that go on from image tokens and a prompt: T5 (encoder and decoder), OPT and Llama (decoder alone).

Both kinds read first, once for every question, and then rank candidates or write: what was read stands in a cache.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from vlbench.capability import Hidden
from vlbench.nn.attend import Shared
from vlbench.nn.beam import beam_search
from vlbench.nn.caches import with_cache

from ._blip_text import by_length

ROWS = 2048  # question-candidate pairs scored in one pass
Ids = Sequence[Sequence[int]]


class Read(NamedTuple):
    """R rows that have read image and prompt. logits: (R, vocabulary) of the next token. cache: keys and values of all
    that was read (T5: of the decoder's start). context: T5's encoder states."""

    logits: Tensor
    cache: Any
    context: Shared | None = None


class Forced(NamedTuple):
    """What a model tells of texts: (T, vocabulary) logits, (T,) the tokens they should name, (T,) each one's text.
    hidden: give the last layer's states of all places, where they are asked for."""

    logits: Tensor
    targets: Tensor
    text: Tensor
    hidden: tuple[Callable[[], Hidden], ...]

    @classmethod
    def of(cls, parts: Sequence[Forced]) -> Forced:
        """What was computed in parts, together."""
        logits, targets, text, hidden = zip(*parts, strict=True)
        return cls(torch.cat(logits), torch.cat(targets), torch.cat(text), tuple(h for part in hidden for h in part))


class Language(ABC):
    """A language model. images: (P, N, D) in the space of its word embeddings; owner: int64 (R,), the image of each
    row; prompts: token ids of each row, one at least; end: the token that ends what it writes."""

    def __init__(self, net: Any, head: Any, end: int) -> None:
        self.net, self.head, self.end = net, head, end

    @property
    def device(self) -> torch.device:
        device: torch.device = self.net.get_input_embeddings().weight.device
        return device

    def embed(self, ids: Tensor) -> Tensor:
        """(R, L) -> (R, L, D)."""
        states: Tensor = self.net.get_input_embeddings()(ids)
        return states

    @abstractmethod
    def read(self, images: Tensor, owner: Tensor, prompts: Ids) -> Iterator[tuple[list[int], Read]]:
        """(row numbers, what they have read), rows that are read together at a time. For evaluation: no gradients."""

    @abstractmethod
    def go_on(self, ids: Tensor, cache: Any, context: Shared | None) -> Tensor:
        """(R, L) tokens -> (R, L, vocabulary) logits of the next ones. cache: of those before, and grows."""

    @abstractmethod
    def forced(self, images: Tensor, owner: Tensor, prompts: Ids, texts: Ids, row: Sequence[int]) -> Forced:
        """Teacher forcing. texts: what follows a prompt, its end included; row: the prompt each of them follows."""

    def rank(self, read: Read, candidates: Ids, k: int) -> Tensor:
        """(R, candidates) log-likelihood of the k candidates whose first token is likeliest, -inf elsewhere."""
        log = read.logits.float().log_softmax(-1)  # (R, vocabulary)
        first = log[:, torch.tensor([c[0] for c in candidates], device=log.device)]  # (R, candidates)
        chosen = first.topk(min(k, len(candidates)), dim=1).indices  # (R, k)
        score = torch.full_like(first, float("-inf"))
        length = torch.tensor([len(c) for c in candidates], device=log.device)
        ids = padded(candidates, 0, log.device)[0]  # (candidates, longest)
        row = torch.arange(len(log), device=log.device)[:, None].expand_as(chosen).flatten()
        column = chosen.flatten()  # (R * k,), as row
        # Candidates of one length together: nothing is padded, and no position is computed that is not read.
        for size in length[column].unique().tolist():
            same = length[column] == size
            for r, c in zip(row[same].split(ROWS), column[same].split(ROWS), strict=True):
                score[r, c] = first[r, c] + self._rest(read, r, ids[c, :size])
        return score

    def _rest(self, read: Read, row: Tensor, ids: Tensor) -> Tensor:
        """(n,) log-likelihood of the tokens ids (n, L) after their first, which follows what the rows have read."""
        if ids.shape[1] == 1:
            return read.logits.new_zeros(len(ids), dtype=torch.float32)
        context = None if read.context is None else read.context.read_by(row)
        logits = self.go_on(ids[:, :-1], gathered(read.cache, row), context).float().log_softmax(-1)
        return logits.gather(2, ids[:, 1:, None])[..., 0].sum(1)

    def generate(
        self, read: Read, *, beams: int, max_length: int, min_length: int, length_penalty: float
    ) -> list[Tensor]:
        """Token ids of what follows, without its end. Lengths count what is written, and one for the start."""

        def step(tokens: Tensor, rows: Tensor | None) -> Tensor:
            if rows is None:
                return read.logits
            read.cache.reorder_cache(rows)
            return self.go_on(tokens, read.cache, read.context)[:, -1]

        start = torch.zeros((len(read.logits), 1), dtype=torch.long, device=read.logits.device)  # (R, 1)
        best, _ = beam_search(
            step, start, beams=beams, max_length=max_length, min_length=min_length, end=self.end,
            length_penalty=length_penalty,
        )  # fmt: skip
        return [ids[1:] for ids in best]


class T5(Language):
    """net: a T5ForConditionalGeneration. The encoder reads image tokens and prompt, the decoder writes."""

    @property
    def start(self) -> int:
        return int(self.net.config.decoder_start_token_id)

    def read(self, images: Tensor, owner: Tensor, prompts: Ids) -> Iterator[tuple[list[int], Read]]:
        states, mask = self.encoded(images, owner, prompts)
        context = Shared(states, torch.arange(len(states), device=states.device), mask)
        cache = DynamicCache()
        begin = torch.full((len(states), 1), self.start, device=states.device)  # (R, 1)
        yield list(range(len(prompts))), Read(self.go_on(begin, cache, context)[:, -1], cache, context)

    def encoded(self, images: Tensor, owner: Tensor, prompts: Ids) -> tuple[Tensor, Tensor | None]:
        """(R, N + L, D) states of image and prompt, and their mask where prompts differ in length."""
        ids, mask = padded(prompts, self.net.config.pad_token_id, self.device)
        if mask is not None:
            mask = torch.cat([mask.new_ones(len(ids), images.shape[1]), mask], 1)
        inputs = torch.cat([images[owner], self.embed(ids).to(images)], 1)  # (R, N + L, D)
        states: Tensor = self.net.encoder(inputs_embeds=inputs, attention_mask=mask).last_hidden_state
        return states, mask

    def go_on(self, ids: Tensor, cache: Any, context: Any, mask: Tensor | None = None) -> Tensor:
        """mask: of states that are a plain tensor."""
        logits: Tensor = self.head(self._states(ids, cache, context, mask))
        return logits

    def _states(self, ids: Tensor, cache: Any, context: Any, mask: Tensor | None = None) -> Tensor:
        """(R, L) tokens -> (R, L, D), what the head takes."""
        if isinstance(context, Shared):  # it has a mask of its own; four dimensions keep the library from making one
            mask = torch.zeros(1, 1, 1, 1, device=ids.device)
        hidden: Tensor = self.net.decoder(
            input_ids=ids, encoder_hidden_states=context, encoder_attention_mask=mask,
            **with_cache(self.net.decoder, None if cache is None else EncoderDecoderCache(cache, DynamicCache())),
        ).last_hidden_state  # fmt: skip
        if self.net.config.scale_decoder_outputs:
            hidden = hidden * self.net.config.d_model**-0.5
        return hidden

    def forced(self, images: Tensor, owner: Tensor, prompts: Ids, texts: Ids, row: Sequence[int]) -> Forced:
        states, mask = self.encoded(images, owner, prompts)
        parts: list[Forced] = []
        for index, ids in by_length(texts, ROWS):
            rows, targets = [row[i] for i in index], ids.to(self.device)
            begun = torch.cat([torch.full_like(targets[:, :1], self.start), targets[:, :-1]], 1)  # (n, L)
            hidden = self._states(begun, None, *_context(states, rows, mask))  # (n, L, D)
            logits = self.head(hidden)  # (n, L, vocabulary)
            text = torch.tensor(index, device=self.device)[:, None].expand_as(targets)
            parts.append(Forced(logits.flatten(0, 1), targets.flatten(), text.flatten(), (partial(whole, hidden),)))
        return Forced.of(parts)


class Causal(Language):
    """net: an OPTModel or LlamaModel. One stream: image tokens, prompt, text. What stands in `images` is the same for
    all rows of an image and read once; then prompts of one length together, so that nothing is padded on the left."""

    def read(self, images: Tensor, owner: Tensor, prompts: Ids) -> Iterator[tuple[list[int], Read]]:
        used, slot = owner.unique(return_inverse=True)
        begun = DynamicCache()
        self.net(inputs_embeds=images[used], **with_cache(self.net, begun))
        for index, ids in by_length(prompts, ROWS):
            cache = gathered(begun, slot[torch.tensor(index, device=slot.device)])
            yield index, Read(self._hidden(ids.to(self.device), cache, images.dtype, last=True), cache)

    def go_on(self, ids: Tensor, cache: Any, context: Shared | None = None) -> Tensor:
        return self._hidden(ids, cache, None)

    def _hidden(self, ids: Tensor, cache: Any, dtype: torch.dtype | None, *, last: bool = False) -> Tensor:
        """Logits after all tokens, or (R, vocabulary) after the last."""
        embedded = self.embed(ids)  # (R, L, D)
        out = self.net(inputs_embeds=embedded.to(dtype or embedded.dtype), **with_cache(self.net, cache))
        logits: Tensor = self.head(out.last_hidden_state[:, -1] if last else out.last_hidden_state)
        return logits

    def forced(self, images: Tensor, owner: Tensor, prompts: Ids, texts: Ids, row: Sequence[int]) -> Forced:
        """Rows of one length together: nothing is padded, which OPT would hide from calibration (it flattens its
        batches). Logits are computed of the tokens that should be told alone."""
        parts: list[Forced] = []
        for index, ids in by_length([[*prompts[r], *text] for r, text in zip(row, texts, strict=True)], ROWS):
            ids = ids.to(self.device)
            shown = images[owner[torch.tensor([row[i] for i in index], device=owner.device)]]
            inputs = torch.cat([shown, self.embed(ids[:, :-1]).to(shown)], 1)  # (n, N + L - 1, D)
            out = self.net(inputs_embeds=inputs, attention_mask=_meta_mask(self.net, inputs), use_cache=False)
            states = out.last_hidden_state  # (n, N + L - 1, D)
            places = [(n, at, i) for n, i in enumerate(index) for at in range(len(prompts[row[i]]), ids.shape[1])]
            n, at, text = torch.tensor(places, device=self.device).unbind(1)
            spot = shown.shape[1] + at - 1  # the state that tells the token at `at`
            image = torch.zeros(states.shape[:2], dtype=torch.bool, device=self.device)
            image[:, : shown.shape[1]] = True
            hidden = partial(hidden_of, states, n, spot, image)
            parts.append(Forced(self.head(states[n, spot]), ids[n, at], text, (hidden,)))
        return Forced.of(parts)


def whole(states: Tensor) -> Hidden:
    """Of a decoder's states (n, L, D), all of which tell a token; images are read by cross-attention."""
    everywhere = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    return Hidden(states, everywhere, everywhere, ~everywhere)


def hidden_of(states: Tensor, row: Tensor, spot: Tensor, image: Tensor) -> Hidden:
    """Of states (n, S, D) without padding. row, spot: (T,) those that tell a token; image: bool (n, S), an image's."""
    learnt = torch.zeros_like(image)
    learnt[row, spot] = True
    return Hidden(states, learnt, torch.ones_like(image), image)


def _meta_mask(net: Any, inputs: Tensor) -> Tensor | None:
    """None: the library sees to it that no token sees a later one. All but OPT look at the values of positions for
    that, and on the meta device, where costs of large models are counted, there are none: there the mask itself."""
    length = inputs.shape[1]
    blank = inputs.device.type == "meta" and net.config.model_type != "opt"
    return torch.ones(1, 1, length, length, dtype=torch.bool, device=inputs.device).tril() if blank else None


class Placed(DynamicCache):  # type: ignore[misc]
    """A cache whose rows may go on at other positions than the number of their tokens says (an image's tokens on a grid
    share positions). shift: int64 (R,), how far the next position is from that number; None: nowhere."""

    shift: Tensor | None = None

    def reorder_cache(self, rows: Tensor) -> None:
        super().reorder_cache(rows)
        self.shift = None if self.shift is None else self.shift[rows]


def gathered(cache: Any, rows: Tensor) -> Any:
    """A cache of its own with the given rows of another."""
    copy = Placed()
    shift = getattr(cache, "shift", None)
    copy.shift = None if shift is None else shift[rows.to(shift.device)]
    for number, layer in enumerate(cache.layers):
        index = rows.to(layer.keys.device)  # a model may be split over devices
        copy.update(layer.keys[index], layer.values[index], number)
    return copy


def _context(states: Tensor, rows: Sequence[int], mask: Tensor | None) -> tuple[Tensor | Shared, Tensor | None]:
    """The states that a decoder's rows read, shared where several read the same, and the mask of plain ones."""
    used = sorted(set(rows))
    index = torch.tensor(used, device=states.device)
    states, mask = states[index], None if mask is None else mask[index]
    if len(used) < len(rows):
        owner = torch.tensor([used.index(r) for r in rows], device=states.device)
        return Shared(states, owner, mask, cache=False), None
    order = torch.tensor([used.index(r) for r in rows], device=states.device)
    return states[order], None if mask is None else mask[order]


def padded(ids: Ids, pad: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """(n, L) token ids, and int64 (n, L) with 0 for padding where there is any."""
    length = max(map(len, ids))
    rows = torch.tensor([[*one, *[pad] * (length - len(one))] for one in ids], device=device)
    if min(map(len, ids)) == length:
        return rows, None
    mask = torch.tensor([[1] * len(one) + [0] * (length - len(one)) for one in ids], device=device)
    return rows, mask
