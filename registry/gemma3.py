"""Gemma 3 (2025, arXiv 2503.19786) on transformers: SigLIP so400m, an average pool with one matrix, and Gemma.

An image is squashed to 896 pixels and becomes 256 tokens, which see one another both ways inside the language model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlbench.model import family

from ._chat import chat_of
from ._layout import LLAVA
from ._masks import SeesImages
from ._projected import Projected

BEGIN, END = "<start_of_image>", "<end_of_image>"


@family("gemma3.json")
class Gemma3(Projected):
    """encode: every image -> as many tokens."""

    library = "Gemma3ForConditionalGeneration"
    model_type = "gemma3"
    processor = "Gemma3ImageProcessor"
    mark = "<image_soft_token>"
    keys = LLAVA
    telling = ("model.multi_modal_projector.mm_input_projection_weight",)
    vision = "model.vision_tower.encoder.layers"
    stream = SeesImages

    @classmethod
    def chat(cls, folder: Path, tokenizer: Any) -> dict[str, str]:
        """The template writes where an image begins; the library's processor puts its tokens and an end there."""
        begin, end = (getattr(tokenizer, f"{name}_token", word) for name, word in (("boi", BEGIN), ("eoi", END)))
        prompts = chat_of(folder, tokenizer, begin)
        return {**prompts, "image": prompts["image"].replace(begin, f"\n\n{begin}{cls.mark}{end}\n\n")}
