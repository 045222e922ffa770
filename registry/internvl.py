"""InternVL3 (Zhu et al. 2025, arXiv 2504.10479) on transformers: InternViT-300M, an MLP and Qwen2.5.

An image is cut into up to twelve tiles of 448 pixels and a thumbnail; every tile becomes 256 tokens (pixel shuffle).
Checkpoints are those in the library's layout (OpenGVLab/InternVL3-*-hf), which need no code of a repository.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from vlbench.model import family

from ._projected import Projected


@family("internvl.json")
class InternVL(Projected):
    """encode: tiles -> 256 tokens each, side by side."""

    library = "InternVLForConditionalGeneration"
    model_type = "internvl"
    processor = "GotOcr2ImageProcessor"
    words_of_processor: ClassVar[dict[str, Any]] = {"crop_to_patches": True}
    mark = "<IMG_CONTEXT>"
    keys = (
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^language_model\.(?:model\.)?", "model.language_model."),
        (r"^(?:model\.)?(vision_tower|multi_modal_projector)\.", r"model.\1."),
    )
    telling = ("model.multi_modal_projector.layer_norm.weight", "model.vision_tower.embeddings.cls_token")
    vision = "model.vision_tower.encoder.layer"
    # Its projector begins with a norm over four tokens side by side: vision_readers stays None.
    text_writers = ("model.multi_modal_projector.linear_2",)

    @classmethod
    def chat(cls, folder: Path, tokenizer: Any) -> dict[str, str]:
        """The library's processor puts a beginning and an end around an image's tokens."""
        prompts = super().chat(folder, tokenizer)
        start = getattr(tokenizer, "start_image_token", "<img>")
        end = getattr(tokenizer, "end_image_token", "</img>")
        return {**prompts, "image": prompts["image"].replace(cls.mark, f"{start}{cls.mark}{end}")}
