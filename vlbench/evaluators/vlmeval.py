"""A compressed model as a VLMEvalKit model: `VLBench(FOLDER)` in its config (https://github.com/open-compass/VLMEvalKit).

from vlbench.evaluators.vlmeval import VLBench
supported_VLM["mine"] = partial(VLBench, "exported-folder")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from vlmeval.vlm.base import BaseModel

from .asking import opened


class VLBench(BaseModel):  # type: ignore[misc]
    """pretrained: as of lmms_model.VLBench. words: of generation, like max_new_tokens."""

    INTERLEAVE = True

    def __init__(
        self, pretrained: str, checkpoint: str = "", device: str = "", dtype: str = "fp32", **words: Any
    ) -> None:
        super().__init__()
        self.words = words
        self.asked = opened(pretrained, checkpoint=checkpoint, device=device, precision=dtype)

    def generate_inner(self, message: Sequence[Mapping[str, str]], dataset: str | None = None) -> str:
        """message: parts {"type": "image" or "text", "value": a file or words}, in the order of the prompt."""
        text = "\n".join(part["value"] for part in message if part["type"] == "text")
        pictures = [Image.open(part["value"]) for part in message if part["type"] == "image"]
        (answer,) = self.asked.answers([text], [pictures], words=self.words, batch_size=1)
        return answer
