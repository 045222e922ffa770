"""Beam search with the rules of transformers 4.15, which BLIP's published numbers were made with.

A finished hypothesis scores sum(log p, the end included) / length ** length_penalty, where the length counts the prompt
but not the end token; later versions of transformers count neither, and pick other sentences.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# (tokens (R, L), rows to keep first or None) -> logits (R, V) of the next token; the caller keeps the cache. The first
# call has one row a sentence, since its beams start equal; the rows of the second one repeat them.
Step = Callable[[Tensor, Tensor | None], Tensor]


@dataclass
class _Sentence:
    """One sentence on the host: the tokens of its running beams, and its best `beams` finished hypotheses."""

    beams: int
    penalty: float
    running: list[list[int]]
    finished: list[tuple[float, list[int]]] = field(default_factory=list)
    closed: bool = False

    def add(self, tokens: list[int], total: float) -> None:
        self.finished.append((total / len(tokens) ** self.penalty, tokens))
        self.finished = sorted(self.finished, key=lambda f: -f[0])[: self.beams]

    def choose(self, totals: list[float], flat: list[int], vocabulary: int, end: int) -> list[int]:
        """Which of the 2 * beams candidates go on. totals: their sums, best first; flat: beam * vocabulary + token."""
        length, chosen = len(self.running[0]), list[int]()
        for rank, (total, index) in enumerate(zip(totals, flat, strict=True)):
            if index % vocabulary == end:
                if rank < self.beams and not self.closed:
                    self.add(self.running[index // vocabulary], total)
            elif len(chosen) < self.beams:
                chosen.append(rank)
        self._close_if_done(max(totals), length)
        self.running = [[*self.running[flat[r] // vocabulary], flat[r] % vocabulary] for r in chosen]
        return chosen

    def close(self, totals: list[float]) -> None:
        """Where no more tokens may come: the running beams are hypotheses as well. totals: their sums."""
        if not self.closed:
            for tokens, total in zip(self.running, totals, strict=True):
                self.add(tokens, total)

    def _close_if_done(self, best_total: float, length: int) -> None:
        """Done when the best running hypothesis cannot beat the worst finished one any more."""
        if len(self.finished) == self.beams and self.finished[-1][0] >= best_total / length**self.penalty:
            self.closed = True


def beam_search(
    step: Step,
    start: Tensor,
    *,
    beams: int,
    max_length: int,
    min_length: int,
    end: int,
    length_penalty: float = 1.0,
) -> tuple[list[Tensor], list[float]]:
    """start (B, L) prompts -> the best token row of each (on the CPU; prompt included, end excluded) and its score.

    max_length and min_length count the prompt. The host hears of the candidates once a step, which it must to know the
    end, and says once which of them go on.
    """
    count, prompts = len(start), start.tolist()
    sentences = [_Sentence(beams, length_penalty, [list(prompt)] * beams) for prompt in prompts]
    total = start.new_full((count, beams), -1e9, dtype=torch.float32)
    total[:, 0] = 0.0  # all beams of a sentence start equal: only one may speak
    logits = step(start, None).repeat_interleave(beams, 0, output_size=count * beams)
    first = torch.arange(count, device=start.device)[:, None] * beams  # row of each sentence's first beam
    copies, length = beams, start.shape[1]  # copies: of each row that the caller's cache holds
    while True:
        vocabulary = logits.shape[1]
        best = _best(logits, total, 2 * beams, end if length < min_length else None)
        totals, flat = _heard(best.values, best.indices)
        heard = zip(sentences, totals, flat, strict=True)
        ranks = [sentence.choose(sums, places, vocabulary, end) for sentence, sums, places in heard]
        length += 1
        if all(done.closed for done in sentences) or length >= max_length:
            break
        chosen = torch.tensor(ranks, device=start.device)
        total, index = best.values.gather(1, chosen), best.indices.gather(1, chosen)
        rows, tokens = (first + index // vocabulary).flatten(), (index % vocabulary).flatten()
        logits = step(tokens[:, None], rows // copies)
        copies = 1
    for sentence, sums, kept in zip(sentences, totals, ranks, strict=True):
        sentence.close([sums[rank] for rank in kept])
    best_of = [sentence.finished[0] for sentence in sentences]
    return [torch.tensor(tokens) for _, tokens in best_of], [score for score, _ in best_of]


def _best(logits: Tensor, total: Tensor, count: int, banned: int | None) -> Any:
    """The `count` best continuations of each sentence: values and numbers beam * vocabulary + token, (sentences,
    count). logits: (rows, vocabulary); total: (sentences, beams) sums; banned: a token that may not come."""
    score = logits.float().log_softmax(-1)
    if banned is not None:
        score[:, banned] = float("-inf")
    return (score + total.view(-1, 1)).view(len(total), -1).topk(count, dim=1)


def _heard(values: Tensor, indices: Tensor) -> tuple[list[list[float]], list[list[int]]]:
    """float32 values and int64 indices on the host, in one copy: the values' bits travel as integers.
    Raises ValueError where a value is no number."""
    both = torch.stack([values.contiguous().view(torch.int32).long(), indices]).cpu()
    numbers: list[list[float]] = both[0].int().view(torch.float32).tolist()
    places: list[list[int]] = both[1].tolist()
    if any(math.isnan(number) for row in numbers for number in row):  # topk puts it before all others
        raise ValueError("the score of a beam is not finite")
    return numbers, places
