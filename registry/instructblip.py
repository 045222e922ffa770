"""InstructBLIP (Dai et al. 2023, arXiv 2305.06500) on transformers, with FlanT5 or Vicuna: answers and captions.

Its Q-Former reads the prompt, too, so that image tokens belong to a question: shared among the questions of an image is
the ViT, and the keys and values of the Q-Former's cross-attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration

from vlbench.model import Card, family
from vlbench.structure import Structure

from ._blip2 import QFORMER, QUERIES, VISION, Blip2Folder, Config, attended, language_towers, vision_tower
from ._language import Language, padded
from ._prompted import Prompted, language_of
from ._tokenizer import read_tokenizer

QFORMER_TOKENIZER = "qformer_tokenizer"
MAX_PROMPT = 128  # tokens of the prompt that the Q-Former reads


@family("instructblip.json")
class InstructBlip(Blip2Folder, Prompted):
    """encode: the ViT. answer, caption: the Q-Former reads image and prompt, then the language model does."""

    prompts: ClassVar[Mapping[str, str]] = {"answer": "Question: {} Short answer:", "caption": "A short image caption:"}
    model_type: ClassVar[str] = "instructblip"
    qformer_tokenizer: Any

    @classmethod
    def network(cls, config: Config) -> nn.Module:
        net: nn.Module = InstructBlipForConditionalGeneration(InstructBlipConfig.from_dict(config))
        return net

    @classmethod
    def architecture(cls, card: Card) -> Config:
        vision = {**VISION, "image_size": card.image.size}
        return card.sized({"vision_config": vision, "qformer_config": QFORMER, "num_query_tokens": QUERIES})

    def vocabulary(self) -> int:
        return int(self.net.config.text_config.vocab_size)

    def read_assets(self, folder: Path) -> None:
        super().read_assets(folder)
        vocabulary = folder / QFORMER_TOKENIZER  # without it the model's own is BERT's, too (the mini models')
        words = int(self.net.config.qformer_config.vocab_size)
        self.qformer_tokenizer = read_tokenizer(vocabulary if vocabulary.is_dir() else folder, words)

    def save_assets(self, folder: Path) -> None:
        super().save_assets(folder)
        self.qformer_tokenizer.save_pretrained(folder / QFORMER_TOKENIZER)

    @property
    def language(self) -> Language:
        return language_of(self.net.language_model)

    def structure(self) -> Structure:
        return Structure((vision_tower(self.net), *language_towers(self.net)))

    def encode(self, images: Tensor) -> Tensor:
        """(I, 3, H, W) -> (I, N, D) image tokens of the ViT."""
        return self.vision(images)

    def shown(self, states: Any, owner: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(R, queries, D): what the Q-Former makes of a row's image in view of its prompt."""
        ids = self.qformer_tokenizer(list(prompts), truncation=True, max_length=MAX_PROMPT).input_ids
        rows, mask = padded(ids, self.qformer_tokenizer.pad_token_id, states.device)
        queries = self.queries(len(ids))
        if mask is not None:
            mask = torch.cat([mask.new_ones(queries.shape[:2]), mask], 1)
        out = self.net.qformer(
            input_ids=rows, attention_mask=mask, query_embeds=queries, encoder_hidden_states=attended(states, owner)
        ).last_hidden_state[:, : queries.shape[1]]
        return self.net.language_projection(out.to(states.dtype)), torch.arange(len(ids), device=states.device)
