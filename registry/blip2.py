"""BLIP-2 (Li et al. 2023, arXiv 2301.12597) on transformers, with FlanT5 or OPT: answers and captions by prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import Blip2Config, Blip2ForConditionalGeneration

from vlbench.images.spec import ImageSpec
from vlbench.model import Card, family
from vlbench.structure import Structure

from ._blip2 import LANGUAGE, QFORMER, QUERIES, VISION, Blip2Folder, Config, language_towers, vision_tower
from ._blip_text import clean_question
from ._language import Language
from ._prompted import Prompted, language_of

MAX_WORDS = 50  # of a question


@family(
    Card(
        name="blip2-flan-t5-xl",
        title="BLIP-2 ViT-g, FlanT5-XL",
        capabilities=("answer", "caption"),
        checkpoint="Salesforce/blip2-flan-t5-xl",
        image=ImageSpec(size=224),
        default_for=("gqa", "okvqa", "nocaps"),
        licence="MIT",
        source="https://arxiv.org/abs/2301.12597",
        published={"gqa/testdev/accuracy": 44.2},
        prunable="every attention and feed-forward matrix of the ViT, the T5 encoder and the T5 decoder; the Q-Former, "
        "the projection, embeddings and lm_head stay dense, as in RESSA and ECoFLaP",
    ),
    Card(
        name="blip2-flan-t5-xxl",
        title="BLIP-2 ViT-g, FlanT5-XXL",
        capabilities=("answer", "caption"),
        checkpoint="Salesforce/blip2-flan-t5-xxl",
        image=ImageSpec(size=224),
        licence="MIT",
        source="https://arxiv.org/abs/2301.12597",
        published={"gqa/testdev/accuracy": 44.7},
        prunable="every attention and feed-forward matrix of the ViT, the T5 encoder and the T5 decoder; the Q-Former, "
        "the projection, embeddings and lm_head stay dense, as in RESSA and ECoFLaP",
    ),
    Card(
        name="blip2-opt-2.7b",
        title="BLIP-2 ViT-g, OPT-2.7B",
        capabilities=("answer", "caption"),
        checkpoint="Salesforce/blip2-opt-2.7b",
        image=ImageSpec(size=224),
        licence="MIT (ViT, Q-Former), OPT licence (non-commercial)",
        source="https://arxiv.org/abs/2301.12597",
        prunable="every attention and feed-forward matrix of the ViT and OPT; the Q-Former, the projection, embeddings "
        "and lm_head stay dense, as in RESSA and ECoFLaP",
    ),
    Card(
        name="blip2-opt-6.7b",
        title="BLIP-2 ViT-g, OPT-6.7B",
        capabilities=("answer", "caption"),
        checkpoint="Salesforce/blip2-opt-6.7b",
        image=ImageSpec(size=224),
        licence="MIT (ViT, Q-Former), OPT licence (non-commercial)",
        source="https://arxiv.org/abs/2301.12597",
        prunable="every attention and feed-forward matrix of the ViT and OPT; the Q-Former, the projection, embeddings "
        "and lm_head stay dense, as in RESSA and ECoFLaP",
    ),
    Card(
        name="blip2-mini",
        title="BLIP-2 of width 64 with a T5, VQA, mini world",
        capabilities=("answer",),
        checkpoint="mini:blip2-mini",
        image=ImageSpec(size=64),
        suite="mini",
        default_for=("gqa", "okvqa"),
        licence="Apache-2.0",
        trained_on=("vqav2/train",),
        prunable="every attention and feed-forward matrix of the ViT, the T5 encoder and the T5 decoder; the Q-Former, "
        "the projection, embeddings and lm_head stay dense",
    ),
)
class Blip2(Blip2Folder, Prompted):
    """encode: ViT, Q-Former and projection, once per image. The language model reads image tokens and a prompt."""

    prompts: ClassVar[Mapping[str, str]] = {"answer": "Question: {} Short answer:", "caption": "a photo of"}

    @classmethod
    def network(cls, config: Config) -> nn.Module:
        net: nn.Module = Blip2ForConditionalGeneration(Blip2Config.from_dict(config))
        return net

    @classmethod
    def architecture(cls, card: Card) -> Config:
        if card.name.removeprefix("blip2-") not in LANGUAGE:
            return super().architecture(card)
        return {
            "vision_config": {**VISION, "image_size": card.image.size}, "qformer_config": QFORMER,
            "text_config": LANGUAGE[card.name.removeprefix("blip2-")], "num_query_tokens": QUERIES,
        }  # fmt: skip

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
