"""Beam search with the rules of transformers 4.15, which BLIP's published numbers were made with.

A finished hypothesis scores sum(log p, the end included) / length ** length_penalty, where the length counts the prompt
but not the end token; later versions of transformers count neither, and pick other sentences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

# (tokens (R, L), rows to keep first or None) -> logits (R, V) of the next token; the caller keeps the cache. The first
# call has one row a sentence, since its beams start equal; the rows of the second one repeat them.
Step = Callable[[Tensor, Tensor | None], Tensor]


@dataclass
class _Finished:
    """The best `beams` finished hypotheses of one sentence."""

    beams: int
    penalty: float
    found: list[tuple[float, Tensor]] = field(default_factory=list)
    closed: bool = False

    def add(self, tokens: Tensor, total: float) -> None:
        self.found.append((total / len(tokens) ** self.penalty, tokens))
        self.found = sorted(self.found, key=lambda f: -f[0])[: self.beams]

    def close_if_done(self, best_total: float, length: int) -> None:
        """Done when the best running hypothesis cannot beat the worst finished one any more."""
        if len(self.found) == self.beams and self.found[-1][0] >= best_total / length**self.penalty:
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
    """start (B, L) prompts -> the best token row of each (prompt included, end excluded) and its score.

    max_length and min_length count the prompt.
    """
    count = len(start)
    ids = start.repeat_interleave(beams, 0)
    total = start.new_full((count, beams), -1e9, dtype=torch.float32)
    total[:, 0] = 0.0  # all beams of a sentence start equal: only one may speak
    finished = [_Finished(beams, length_penalty) for _ in range(count)]
    logits = step(start, None).repeat_interleave(beams, 0)
    copies = beams  # of each row that the caller's cache holds
    while True:
        score = logits.float().log_softmax(-1)
        if ids.shape[1] < min_length:
            score[:, end] = float("-inf")
        vocabulary = score.shape[1]
        best = (score + total.view(-1, 1)).view(count, -1).topk(2 * beams, dim=1)
        rows, tokens, total = _choose(best, ids, finished, beams, vocabulary, end)
        ids = torch.cat([ids[rows], tokens[:, None]], 1)
        if all(f.closed for f in finished) or ids.shape[1] >= max_length:
            break
        logits = step(tokens[:, None], rows // copies)
        copies = 1
    for i, one in enumerate(finished):
        if not one.closed:
            for beam in range(beams):
                one.add(ids[i * beams + beam], float(total[i, beam]))
    return [f.found[0][1] for f in finished], [f.found[0][0] for f in finished]


def _choose(
    best: torch.return_types.topk, ids: Tensor, finished: list[_Finished], beams: int, vocabulary: int, end: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The next beams: (rows of ids they continue, their tokens, their totals (B, beams)). Ended ones are filed."""
    totals, flat = best.values.tolist(), best.indices.tolist()
    rows: list[int] = []
    tokens: list[int] = []
    kept: list[list[float]] = []
    for i, one in enumerate(finished):
        running: list[tuple[int, int, float]] = []
        for rank, (total, index) in enumerate(zip(totals[i], flat[i], strict=True)):
            row, token = i * beams + index // vocabulary, index % vocabulary
            if token == end:
                if rank < beams and not one.closed:
                    one.add(ids[row], total)
            elif len(running) < beams:
                running.append((row, token, total))
        one.close_if_done(max(totals[i]), ids.shape[1])
        rows += [r for r, _, _ in running]
        tokens += [t for _, t, _ in running]
        kept.append([t for _, _, t in running])
    device = ids.device
    return torch.tensor(rows, device=device), torch.tensor(tokens, device=device), torch.tensor(kept, device=device)
