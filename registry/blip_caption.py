"""BLIP (Li et al. 2022, arXiv 2201.12086) on transformers: the captioning head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BlipForConditionalGeneration
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from vlbench.capability import Batch, Captioner, Outputs, Prediction
from vlbench.model import family
from vlbench.nn import blip
from vlbench.nn.attend import Shared
from vlbench.nn.beam import beam_search
from vlbench.nn.caches import with_cache
from vlbench.nn.stream import reads_from_others
from vlbench.structure import Structure

from ._blip import Blip, Config, blip_config
from ._blip_text import clean_caption

LABEL_SMOOTHING = 0.1  # of BLIP's decoder (med.py)
IGNORED = -100  # target of a token that is not to be predicted
MAX_CAPTION = 40  # tokens in training, the prompt's included
MAX_WORDS = 30  # of a caption in training
# What batch.options does not say (in training it says nothing): BLIP's configs/caption_coco.yaml.
DEFAULTS: dict[str, Any] = {"prompt": "a picture of ", "beams": 3, "max_length": 20, "min_length": 5}


@family("blip_caption.json")
class BlipCaption(Blip, Captioner):
    """encode: the ViT. caption: the decoder goes on from the prompt's words, with the image in view."""

    @classmethod
    def network(cls, config: Config) -> nn.Module:
        net: nn.Module = BlipForConditionalGeneration(blip_config(config))
        return net

    def structure(self) -> Structure:
        decoder = blip.text_tower(self.net, "text_decoder.bert.encoder.layer", "caption", read_by=())
        return Structure((blip.vision_tower(self.net, read_by=reads_from_others([decoder])), decoder))

    def caption(self, states: Any, batch: Batch) -> list[Prediction]:
        options = {**DEFAULTS, **batch.options}
        prompt = self.prompt_ids(options["prompt"])
        used, row = batch.owner_on_host[:, 0].unique(return_inverse=True)  # an image has one caption
        ids, _ = self.generate(
            states if len(used) == len(states) else states[used.to(states.device)], prompt,
            beams=options["beams"], max_length=options["max_length"], min_length=options["min_length"],
        )  # fmt: skip
        captions = [self.after_prompt(one, prompt) for one in ids]
        return [{"caption": captions[i]} for i in row.tolist()]

    def caption_outputs(self, batch: Batch) -> Outputs:
        """The mean over all target tokens: of the caption and its end, not of the prompt (BLIP's caption loss)."""
        ids, wanted, counted = self._wanted(batch)
        logits = self.logits(ids, Shared(self.encode(batch.images), batch.owner[:, 0]))[:, :-1][counted]
        return Outputs(
            lambda: F.cross_entropy(logits, wanted[counted], label_smoothing=LABEL_SMOOTHING),
            [(logits, 1 / len(logits))],
        )

    def caption_terms(self, batch: Batch) -> int:
        return int(self._wanted(batch)[2].sum())

    def _wanted(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(n, L) token ids, (n, L - 1) the next ones, and which of these the loss is of."""
        options = {**DEFAULTS, **batch.options}
        ids, targets = self.targets([s.target for s in batch.samples], options["prompt"])
        return ids, targets[:, 1:], targets[:, 1:] != IGNORED

    def prompt_ids(self, prompt: str) -> list[int]:
        """[DEC] and the prompt's words."""
        return [self.bos, *self.tokenizer(prompt, add_special_tokens=False).input_ids]

    def targets(self, captions: Sequence[str], prompt: str) -> tuple[Tensor, Tensor]:
        """(n, L) token ids of prompt and caption, and the same with IGNORED for the prompt and for padding."""
        start = self.prompt_ids(prompt)
        cleaned = [clean_caption(text, MAX_WORDS) for text in captions]
        limit = min(MAX_CAPTION, self.net.config.text_config.max_position_embeddings) - 1  # [SEP] is the last
        words = self.tokenizer(cleaned, add_special_tokens=False).input_ids
        ids, mask = self.padded([[*[*start, *ids][:limit], self.tokenizer.sep_token_id] for ids in words])
        targets = ids.masked_fill(mask == 0, IGNORED)
        targets[:, : len(start)] = IGNORED
        return ids, targets

    def logits(self, ids: Tensor, context: Shared) -> Tensor:
        """(R, L) tokens -> (R, L, vocabulary) of the next ones. Padding follows the text, so that no token that is read
        sees it: the causal mask is enough."""
        out = self.net.text_decoder.bert(input_ids=ids, encoder_hidden_states=context, is_decoder=True, use_cache=False)
        logits: Tensor = self.net.text_decoder.cls(out.last_hidden_state)
        return logits

    def generate(
        self, states: Tensor, prompt: list[int], *, beams: int, max_length: int, min_length: int
    ) -> tuple[list[Tensor], list[float]]:
        """(I, N, D) images -> the token ids of the best caption of each, from [DEC] on, and its score.

        The image's keys and values are computed once, for all beams and steps.
        """
        context = Shared(states, torch.arange(len(states)))
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

        def step(tokens: Tensor, rows: Tensor | None) -> Tensor:
            if rows is not None:
                cache.reorder_cache(rows)
            bert = self.net.text_decoder.bert
            out = bert(input_ids=tokens, encoder_hidden_states=context, is_decoder=True, **with_cache(bert, cache))
            logits: Tensor = self.net.text_decoder.cls(out.last_hidden_state[:, -1])
            return logits

        start = torch.tensor([prompt] * len(states), device=self.device)
        end = self.net.config.text_config.sep_token_id
        return beam_search(step, start, beams=beams, max_length=max_length, min_length=min_length, end=end)

    def after_prompt(self, ids: Tensor, prompt: list[int]) -> str:
        """The caption's text without that of the prompt and the space after it (as BLIP cuts it off: a first token
        that continues the prompt's last word loses its first letter)."""
        start = self.shown(torch.tensor(prompt))
        text = self.shown(ids)
        return text[len(start) + 1 :] if start else text
