"""BLIP-2 (Li et al. 2023, arXiv 2301.12597) on transformers, with FlanT5 or OPT: answers and captions by prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import Blip2Config, Blip2ForConditionalGeneration

from vlbench.model import Card, family
from vlbench.structure import Structure

from ._blip2 import QFORMER, QUERIES, VISION, Blip2Folder, Config, language_towers, vision_tower
from ._blip_text import clean_question
from ._language import Language
from ._prompted import Prompted, language_of

MAX_WORDS = 50  # of a question


@family("blip2.json")
class Blip2(Blip2Folder, Prompted):
    """encode: ViT, Q-Former and projection, once per image. The language model reads image tokens and a prompt."""

    prompts: ClassVar[Mapping[str, str]] = {"answer": "Question: {} Short answer:", "caption": "a photo of"}

    @classmethod
    def network(cls, config: Config) -> nn.Module:
        net: nn.Module = Blip2ForConditionalGeneration(Blip2Config.from_dict(config))
        return net

    @classmethod
    def architecture(cls, card: Card) -> Config:
        if not card.architecture:
            return super().architecture(card)
        vision = {**VISION, "image_size": card.image.size}
        return card.sized({"vision_config": vision, "qformer_config": QFORMER, "num_query_tokens": QUERIES})

    def vocabulary(self) -> int:
        return int(self.net.config.text_config.vocab_size)

    @property
    def language(self) -> Language:
        return language_of(self.net.language_model)

    def structure(self) -> Structure:
        return Structure((vision_tower(self.net), *language_towers(self.net)))

    def encode(self, images: Tensor) -> Tensor:
        """(I, 3, H, W) -> (I, queries, D) tokens for the language model."""
        states = self.vision(images)
        out: Any = self.net.qformer(query_embeds=self.queries(images.shape[0]), encoder_hidden_states=states)
        tokens: Tensor = self.net.language_projection(out.last_hidden_state.to(states.dtype))
        return tokens

    def question(self, text: str) -> str:
        return clean_question(text, MAX_WORDS)
