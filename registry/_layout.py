"""How transformers named the parts of a model in the files that it published, and what it calls them today."""

from __future__ import annotations

import re
from collections.abc import Sequence

Patterns = Sequence[tuple[str, str]]
# Vision tower, projector and language model, as LLaVA's and its successors' files have them: old spelling -> today's.
LLAVA: Patterns = (
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^language_model\.(?:model\.)?", "model.language_model."),
    (r"^(?:model\.)?vision_tower\.(?:vision_model\.)?", "model.vision_tower."),
    (r"^(?:model\.)?(multi_modal_projector\.|image_newline)", r"model.\1"),
)


def renamed(key: str, patterns: Patterns) -> str:
    """Today's name: the first pattern that fits decides, and a key that none fits stays."""
    for pattern, name in patterns:
        today, count = re.subn(pattern, name, key)
        if count:
            return today
    return key
