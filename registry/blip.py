"""BLIP (Li et al. 2022, arXiv 2201.12086) on transformers: the visual question answering head."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BlipForQuestionAnswering, BlipTextLMHeadModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from vlbench.capability import SCORE, Answerer, Awaited, Batch, Outputs, Prediction, Stage, offered, unmarked
from vlbench.model import family
from vlbench.nn import blip
from vlbench.nn.attend import Shared
from vlbench.nn.beam import beam_search
from vlbench.nn.caches import with_cache
from vlbench.nn.stream import reads_from_others
from vlbench.structure import Structure

from ._blip import Blip, Config, blip_config, text_stage, uneven
from ._blip_text import by_length, clean_question
from ._language import whole

LABEL_SMOOTHING = 0.1  # of BLIP's decoder, in training and in ranking (med.py)
MAX_QUESTION = 35  # tokens
MAX_WORDS = 50  # of a question
ROWS = 8192  # question-candidate pairs scored in one pass


class Forced(NamedTuple):
    """Of R answers of one length: their numbers, (R, L, vocabulary) logits, (R, L) tokens to tell, (R, L, D) states."""

    numbers: list[int]
    logits: Tensor
    targets: Tensor
    states: Tensor


@family("blip.json")
class BlipVQA(Blip, Answerer):
    """encode: the ViT. answer: question encoder (cross-attends to the image), then the answer decoder."""

    tells_hidden: ClassVar[bool] = True

    @classmethod
    def network(cls, config: Config) -> nn.Module:
        net = BlipForQuestionAnswering(blip_config(config))
        _widen_decoder(net)
        typed: nn.Module = net
        return typed

    def most_images(self, capability: str) -> int | None:
        return 1

    def structure(self) -> Structure:
        net = self.net
        answer = blip.text_tower(net, "text_decoder.bert.encoder.layer", "answer", read_by=())
        question = blip.text_tower(net, "text_encoder.encoder.layer", "question", read_by=reads_from_others([answer]))
        return Structure((blip.vision_tower(net, read_by=reads_from_others([question])), question, answer))

    def stages(self) -> tuple[Stage, ...]:
        """The ViT and the question encoder. The decoder remembers keys between its calls and stays here."""
        return (*super().stages(), text_stage("question", "image"))

    def answer(self, states: Any, batch: Batch) -> Sequence[Prediction]:
        ids = self.question_ids([s.text for s in batch.samples])
        questions, mask = self._asked(states, ids, batch.owner_on_host[:, 0])
        if batch.options.get("decoding", "rank") == "generate":
            return [{"answer": self.shown(ids)} for ids in self.generate(questions)[0]]
        offer = offered(batch)
        score = self.rank(questions, mask, self.candidate_ids(offer.texts), offer.k, uneven=uneven(ids))
        texts = offer.texts
        return Awaited(
            len(ids), [offer.best(score)], lambda best: [{"answer": texts[i]} for i in unmarked(best, SCORE)]
        )

    def answer_outputs(self, batch: Batch) -> Outputs:
        """sum over answers of weight * nll (summed over tokens), a question's mean: BLIP's VQA loss."""
        states = self.encode(batch.images)
        questions, mask = self.question_states(states, [s.text for s in batch.samples], batch.owner[:, 0])
        pairs = [(i, a, w) for i, s in enumerate(batch.samples) for a, w in s.target.items()]
        owner = torch.tensor([p[0] for p in pairs], device=self.device)
        weight = torch.tensor([p[2] for p in pairs], device=self.device, dtype=questions.dtype)
        scored = self.forced(questions, mask, owner, self.candidate_ids([p[1] for p in pairs]))
        share = weight[:, None] / len(batch.samples)
        return Outputs(
            lambda: (weight * self.negative_log_likelihood(scored, questions)).sum() / len(batch.samples),
            [(one.logits.transpose(1, 2), share[one.numbers]) for one in scored],
            lambda: [whole(one.states) for one in scored],
        )

    def question_states(self, states: Tensor, texts: list[str], owner: Tensor) -> tuple[Tensor, Tensor]:
        """(Q, L, H) states of the questions after attending to their images, and their mask (Q, L)."""
        return self._asked(states, self.question_ids(texts), owner)

    def question_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each question: [ENC] words [SEP]."""
        return self.token_ids([clean_question(text, MAX_WORDS) for text in texts], MAX_QUESTION, self.enc)

    def _asked(self, states: Tensor, asked: list[list[int]], owner: Tensor) -> tuple[Tensor, Tensor]:
        ids, mask = self.padded(asked)
        added, context = self.added_mask(asked, mask), Shared.among(states, owner, cache=False)
        out = self.net.text_encoder(input_ids=ids, attention_mask=added, encoder_hidden_states=context, use_cache=False)
        return out.last_hidden_state, mask

    def candidate_ids(self, answers: list[str]) -> list[list[int]]:
        """Token ids of each answer: [DEC] words [SEP]."""
        return self.token_ids(answers, MAX_QUESTION, self.bos)

    def rank(
        self, questions: Tensor, mask: Tensor, candidates: list[list[int]], k: int, *, uneven: bool | None = None
    ) -> Tensor:
        """(Q, candidates) log-likelihood of the k candidates whose first token is likeliest, -inf elsewhere. uneven:
        whether the mask hides anything, where that is known. The host waits once, to hear which k those are."""
        count, total = len(questions), len(candidates)
        context = Shared(questions, torch.arange(count), mask, uneven=uneven)
        logits, begun = self._begin(context)
        first = torch.tensor([c[1] for c in candidates], device=self.device)
        chosen = torch.arange(total).expand(count, -1)
        if k < total:
            chosen = logits.float().softmax(-1)[:, first].topk(k, dim=1).indices.cpu()
        log = logits.log_softmax(-1)
        first_scores = (1 - LABEL_SMOOTHING) * log[:, first] + LABEL_SMOOTHING * log.mean(-1, keepdim=True)
        score = torch.full_like(first_scores, float("-inf"))
        length = torch.tensor([len(c) for c in candidates])
        padded = nn.utils.rnn.pad_sequence([torch.tensor(c) for c in candidates], batch_first=True).to(self.device)
        # Candidates of one length together: nothing is padded, and no position is computed that is not read.
        pairs = torch.stack([torch.arange(count)[:, None].expand_as(chosen).flatten(), chosen.flatten()])
        pairs = pairs[:, length[pairs[1]].argsort(stable=True)]
        sizes, counts = length[pairs[1]].unique_consecutive(return_counts=True)
        there = pairs.to(self.device)
        for size, here, same in zip(
            sizes.tolist(), pairs.split(counts.tolist(), 1), there.split(counts.tolist(), 1), strict=True
        ):
            for owner, (r, c) in zip(here[0].split(ROWS), same.split(ROWS, 1), strict=True):
                rest = self._rest(padded[c, 1:size], context.read_by(owner), begun, r)
                score[r, c] = first_scores[r, c] - rest.to(first_scores.dtype)
        return score

    def _begin(self, context: Shared) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """(Q, vocabulary) logits after [DEC], which all candidates begin with, and its keys and values by layer."""
        cache = DynamicCache()
        start = torch.full((len(context.owner), 1), self.bos, device=self.device)
        logits = self.decode(start, context, cache)[:, 0]
        return logits, [(layer.keys, layer.values) for layer in cache.layers]

    def _rest(self, ids: Tensor, context: Shared, begun: list[tuple[Tensor, Tensor]], row: Tensor) -> Tensor:
        """(R,) smoothed nll of the tokens ids (R, L) but for the first, which follows [DEC] of the questions `row`."""
        if ids.shape[1] == 1:
            return begun[0][0].new_zeros(len(ids))
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(begun):
            cache.update(keys[row], values[row], layer)
        return _summed_nll(self.decode(ids[:, :-1], context, cache), ids[:, 1:])

    def forced(self, questions: Tensor, mask: Tensor, owner: Tensor, answers: list[list[int]]) -> list[Forced]:
        """What the decoder tells of the answers given the questions they belong to (owner, non-decreasing), those of
        one length together."""
        scored = []
        for index, rows in by_length(answers, ROWS):
            ids, context = rows.to(self.device), Shared.among(questions, owner[index], mask.bool())
            states = self.read(ids[:, :-1], context)
            scored.append(Forced(index, self.net.text_decoder.cls(states), ids[:, 1:], states))
        return scored

    def negative_log_likelihood(self, scored: Sequence[Forced], questions: Tensor) -> Tensor:
        """(P,) smoothed nll of each answer, in the type of the questions' states."""
        losses = questions.new_zeros(sum(len(one.numbers) for one in scored))
        for index, logits, targets, _ in scored:
            losses[index] = _summed_nll(logits, targets).to(losses.dtype)
        return losses

    def decode(self, ids: Tensor, context: Shared, cache: DynamicCache | None = None) -> Tensor:
        """(R, L) answer tokens -> (R, L, vocabulary) logits of the next token. cache: of the tokens before them."""
        logits: Tensor = self.net.text_decoder.cls(self.read(ids, context, cache))
        return logits

    def read(self, ids: Tensor, context: Shared, cache: DynamicCache | None = None) -> Tensor:
        """(R, L) answer tokens -> (R, L, D) states of the last layer."""
        both = cache if cache is None else EncoderDecoderCache(cache, DynamicCache())
        bert = self.net.text_decoder.bert
        out = bert(input_ids=ids, encoder_hidden_states=context, is_decoder=True, **with_cache(bert, both))
        states: Tensor = out.last_hidden_state
        return states

    def generate(self, questions: Tensor) -> tuple[list[Tensor], list[float]]:
        """Token ids of the answers, from [DEC] on, and their scores. Beam search as the original does: 3 beams, 1 to 10
        tokens, and the question's padding is attended to."""
        context = Shared(questions, torch.arange(len(questions)))
        cache = DynamicCache()

        def step(tokens: Tensor, rows: Tensor | None) -> Tensor:
            if rows is not None:
                cache.reorder_cache(rows)
            return self.decode(tokens, context, cache)[:, -1]

        start = torch.full((len(questions), 1), self.bos, device=self.device)
        end = self.net.config.text_config.sep_token_id
        return beam_search(step, start, beams=3, max_length=10, min_length=1, end=end)


def _summed_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """(R,) smoothed negative log-likelihood of the targets (R, L), summed over them."""
    loss = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none", label_smoothing=LABEL_SMOOTHING)
    return loss.sum(1)


def _widen_decoder(net: Any) -> None:
    """The decoder attends to the question's states, not to the image's: its keys have the text's width. transformers
    gives both the image's width, which only differs where the ViT is not as wide as the text (ViT-L)."""
    text = net.config.text_config
    if text.encoder_hidden_size != text.hidden_size:
        twin = copy.deepcopy(text)
        twin.encoder_hidden_size = text.hidden_size
        net.text_decoder = BlipTextLMHeadModel(twin)
