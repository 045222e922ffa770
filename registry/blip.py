"""BLIP (Li et al. 2022, arXiv 2201.12086) on transformers: the visual question answering head."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoTokenizer, BlipConfig, BlipForQuestionAnswering, BlipTextLMHeadModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from vlbench.model import Answerer, Batch, Card, ImageSpec, Model, Prediction, family, read_config
from vlbench.nn import blip
from vlbench.nn.attend import Shared
from vlbench.nn.beam import beam_search
from vlbench.structure import Structure
from vlbench.weights import load_into, read_weights

from ._blip_keys import converted, is_original

LABEL_SMOOTHING = 0.1  # of BLIP's decoder, in training and in ranking (med.py)
MAX_QUESTION = 35  # tokens
ROWS = 8192  # question-candidate pairs scored in one pass


@family(
    Card(
        name="blip-vqa",
        title="BLIP ViT-B/16, VQA (CapFilt-L)",
        capabilities=("answer",),
        checkpoint="Salesforce/blip-vqa-capfilt-large",
        image=ImageSpec(size=480),
        default_for=("vqav2",),
        licence="BSD-3-Clause",
        source="https://arxiv.org/abs/2201.12086",
        trained_on=("vqav2/train", "vqav2/val", "visual_genome/train"),
        published={"vqav2/test-dev/accuracy": 77.4},
        prunable="every attention and feed-forward matrix of the ViT, the question encoder and the answer decoder",
    ),
    Card(
        name="blip-vqa-mini",
        title="BLIP of width 64, VQA, mini world",
        capabilities=("answer",),
        checkpoint="mini:blip-vqa-mini",
        image=ImageSpec(size=64),
        suite="mini",
        default_for=("vqav2",),
        licence="Apache-2.0",
        trained_on=("vqav2/train",),
        prunable="every attention and feed-forward matrix of the ViT, the question encoder and the answer decoder",
    ),
)
class BlipVQA(Model, Answerer):
    """encode: the ViT. answer: question encoder (cross-attends to the image), then the answer decoder."""

    net: Any
    tokenizer: Any
    bos: int
    enc: int

    @classmethod
    def build(cls, card: Card, config: dict[str, Any], folder: Path) -> BlipVQA:
        net = BlipForQuestionAnswering(BlipConfig.from_dict(config))
        _widen_decoder(net)
        model = cls(card, config, blip.adopt(net).eval())
        model.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model.bos = net.config.text_config.bos_token_id
        # BLIP's tokenizer adds [DEC] (start of an answer), then [ENC] (start of a question) to BERT's vocabulary.
        model.enc = model.bos + 1
        return model

    @classmethod
    def open(cls, card: Card, folder: Path) -> BlipVQA:
        model = cls.build(card, read_config(folder), folder)
        weights = read_weights(folder)
        load_into(model.net, converted(weights) if is_original(weights) else weights)
        return model

    def save_assets(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)

    def structure(self) -> Structure:
        return Structure(
            (
                blip.vision_tower(self.net),
                blip.text_tower(self.net, "text_encoder.encoder.layer", "question"),
                blip.text_tower(self.net, "text_decoder.bert.encoder.layer", "answer"),
            )
        )

    def encode(self, images: Tensor) -> Tensor:
        """(I, 3, H, W) -> (I, N, D) image tokens."""
        states: Tensor = self.net.vision_model(pixel_values=images).last_hidden_state
        return states

    def answer(self, states: Any, batch: Batch) -> list[Prediction]:
        questions, mask = self.question_states(states, [s.text for s in batch.samples], batch.owner[:, 0])
        if batch.options.get("decoding", "rank") == "generate":
            return [{"answer": text} for text in self.generate(questions)]
        candidates: list[str] = batch.options["candidates"]
        k = int(batch.options.get("k_test", 128))
        best = self.rank(questions, mask, self.candidate_ids(candidates), k).argmax(1)
        return [{"answer": candidates[i]} for i in best.tolist()]

    def answer_loss(self, batch: Batch) -> Tensor:
        """sum over answers of weight * nll (summed over tokens), a question's mean: BLIP's VQA loss."""
        states = self.encode(batch.images)
        questions, mask = self.question_states(states, [s.text for s in batch.samples], batch.owner[:, 0])
        pairs = [(i, a, w) for i, s in enumerate(batch.samples) for a, w in s.target.items()]
        owner = torch.tensor([p[0] for p in pairs], device=self.device)
        weight = torch.tensor([p[2] for p in pairs], device=self.device, dtype=questions.dtype)
        nll = self.negative_log_likelihood(questions, mask, owner, self.candidate_ids([p[1] for p in pairs]))
        return (weight * nll).sum() / len(batch.samples)

    def question_states(self, states: Tensor, texts: list[str], owner: Tensor) -> tuple[Tensor, Tensor]:
        """(Q, L, H) states of the questions after attending to their images, and their mask (Q, L)."""
        ids, mask = self.tokens(texts)
        ids[:, 0] = self.enc
        out = self.net.text_encoder(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=Shared(states, owner), use_cache=False
        )
        return out.last_hidden_state, mask

    def tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, (Q, L) each, padded to the longest."""
        encoded = self.tokenizer(
            texts, padding="longest", truncation=True, max_length=MAX_QUESTION, return_tensors="pt"
        )
        return encoded.input_ids.to(self.device), encoded.attention_mask.to(self.device)

    def candidate_ids(self, answers: list[str]) -> list[list[int]]:
        """Token ids of each answer: [DEC] words [SEP]."""
        encoded = self.tokenizer(answers, truncation=True, max_length=MAX_QUESTION).input_ids
        return [[self.bos, *ids[1:]] for ids in encoded]

    def rank(self, questions: Tensor, mask: Tensor, candidates: list[list[int]], k: int) -> Tensor:
        """(Q, candidates) log-likelihood of the k candidates whose first token is likeliest, -inf elsewhere."""
        count, total = len(questions), len(candidates)
        chosen = torch.arange(total, device=self.device).expand(count, -1)
        if k < total:
            start = torch.full((count, 1), self.bos, device=self.device)
            logits = self.decode(start, Shared(questions, torch.arange(count, device=self.device), mask))[:, 0]
            first = torch.tensor([c[1] for c in candidates], device=self.device)
            chosen = logits.float().softmax(-1)[:, first].topk(k, dim=1).indices
        score = questions.new_full((count, total), float("-inf"))
        length = torch.tensor([len(c) for c in candidates], device=self.device)
        padded = nn.utils.rnn.pad_sequence([torch.tensor(c) for c in candidates], batch_first=True).to(self.device)
        row = torch.arange(count, device=self.device)[:, None].expand_as(chosen).flatten()
        column = chosen.flatten()
        # Candidates of one length together: nothing is padded, and no position is computed that is not read.
        for size in length.unique().tolist():
            same = length[column] == size
            for r, c in zip(row[same].split(ROWS), column[same].split(ROWS), strict=True):
                score[r, c] = -self._nll(questions, mask, r, padded[c, :size])
        return score

    def negative_log_likelihood(
        self, questions: Tensor, mask: Tensor, owner: Tensor, answers: list[list[int]]
    ) -> Tensor:
        """(P,) smoothed nll of each answer given the question it belongs to (owner, non-decreasing)."""
        order = sorted(range(len(answers)), key=lambda i: len(answers[i]))
        found: list[Tensor] = []
        at = 0
        while at < len(order):
            size = len(answers[order[at]])
            group = [i for i in order[at:] if len(answers[i]) == size]
            ids = torch.tensor([answers[i] for i in group], device=self.device)
            found.append(self._nll(questions, mask, owner[group], ids))
            at += len(group)
        back = torch.empty(len(order), dtype=torch.long, device=self.device)
        back[order] = torch.arange(len(order), device=self.device)
        return torch.cat(found)[back]

    def _nll(self, questions: Tensor, mask: Tensor, owner: Tensor, ids: Tensor) -> Tensor:
        used, index = owner.unique_consecutive(return_inverse=True)
        logits = self.decode(ids[:, :-1], Shared(questions[used], index, mask[used].bool()))
        loss = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none", label_smoothing=LABEL_SMOOTHING)
        return loss.sum(1)

    def decode(self, ids: Tensor, context: Shared) -> Tensor:
        """(R, L) answer tokens -> (R, L, vocabulary) logits of the next token."""
        out = self.net.text_decoder.bert(input_ids=ids, encoder_hidden_states=context, is_decoder=True, use_cache=False)
        logits: Tensor = self.net.text_decoder.cls(out.last_hidden_state)
        return logits

    def generate(self, questions: Tensor) -> list[str]:
        """Beam search as the original does: 3 beams, 1 to 10 tokens, and the question's padding is attended to."""
        context = Shared(questions, torch.arange(len(questions), device=self.device))
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

        def step(tokens: Tensor, rows: Tensor | None) -> Tensor:
            if rows is not None:
                cache.reorder_cache(rows)
            out = self.net.text_decoder.bert(
                input_ids=tokens, encoder_hidden_states=context, is_decoder=True, past_key_values=cache, use_cache=True
            )
            logits: Tensor = self.net.text_decoder.cls(out.last_hidden_state[:, -1])
            return logits

        start = torch.full((len(questions), 1), self.bos, device=self.device)
        end = self.net.config.text_config.sep_token_id
        ids, _ = beam_search(step, start, beams=3, max_length=10, min_length=1, end=end)
        texts: list[str] = self.tokenizer.batch_decode([row[1:] for row in ids], skip_special_tokens=True)
        return texts


def _widen_decoder(net: Any) -> None:
    """The decoder attends to the question's states, not to the image's: its keys have the text's width. transformers
    gives both the image's width, which only differs where the ViT is not as wide as the text (ViT-L)."""
    text = net.config.text_config
    if text.encoder_hidden_size != text.hidden_size:
        own = copy.deepcopy(text)
        own.encoder_hidden_size = text.hidden_size
        net.text_decoder = BlipTextLMHeadModel(own)
