"""PaliGemma 2 (Steiner et al. 2024, arXiv 2412.03555) on transformers: SigLIP so400m, one matrix, and Gemma 2.

There is no conversation: [image, <bos>, prompt, line break], all of which see one another (prefix-LM), then the answer.
Gemma 2 bounds its logits softly; PyTorch's fused attention has no such bound, and the library's eager one is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from vlbench.model import Card, family

from ._layout import LLAVA
from ._masks import SeesPrompts
from ._projected import Projected
from ._prompted import Config
from ._stream import Stream


@family("paligemma.json")
class PaliGemma(Projected):
    """encode: every image -> as many tokens."""

    library = "PaliGemmaForConditionalGeneration"
    model_type = "paligemma"
    processor = "SiglipImageProcessor"
    mark = "<image>"
    keys = LLAVA
    telling = ("model.multi_modal_projector.linear.weight",)
    vision = "model.vision_tower.encoder.layers"
    stream = SeesPrompts
    prompts: ClassVar[dict[str, str]] = {"answer": "answer en {}", "caption": "caption en"}

    @classmethod
    def build(cls, card: Card, config: Config, folder: Path) -> PaliGemma:
        model = super().build(card, config, folder)
        model.tokenizer.add_bos_token = False  # as the library's processor does: it stands after the images
        return model

    @classmethod
    def chat(cls, folder: Path, tokenizer: Any) -> dict[str, str]:
        return {"chat": f"{tokenizer.bos_token}{{}}\n", "image": cls.mark}

    @property
    def language(self) -> Stream:
        """Its head bounds the logits as Gemma 2's configuration says."""
        language = super().language
        head, most = language.head, language.net.config.final_logit_softcapping

        def bounded(hidden: Tensor) -> Tensor:
            logits: Tensor = head(hidden)
            return logits if most is None else (logits / most).tanh() * most

        language.head = bounded
        return language

    def turn(self, text: str, images: int) -> str:
        """All images stand before the words."""
        prompts = self.config["prompts"]
        return f"{prompts['image'] * images}{prompts['chat'].replace('{}', text.replace('<image>', '').lstrip())}"
