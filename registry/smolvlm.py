"""SmolVLM2 (Marafioti et al. 2025, arXiv 2504.05299) on transformers: Idefics3 with SmolLM2 as its language
model, down to 256 M parameters."""

from __future__ import annotations

from vlbench.model import family

from .idefics3 import Idefics3


@family("smolvlm.json")
class SmolVLM(Idefics3):
    """encode: Idefics3's, of larger tiles that become fewer tokens."""

    library = "SmolVLMForConditionalGeneration"
    model_type = "smolvlm"
    processor = "SmolVLMImageProcessor"
