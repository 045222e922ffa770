"""Language models in which some tokens see later ones: images (Gemma 3), or image and prompt together (PaliGemma)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.gemma3.modeling_gemma3 import create_masks_for_vision_model, get_block_sequence_ids_for_mask

from vlbench.nn.caches import with_cache

from ._blip_text import by_length
from ._language import ROWS, Ids, Placed, Read, _meta_mask
from ._stream import Prefix, Stream, by_size


class SeesImages(Stream):
    """The tokens of one image see one another both ways. An image still sees nothing of what follows it, so that its
    keys and values are shared among questions."""

    def _seen(
        self, prefixes: Sequence[Prefix], inputs: Tensor, read: Sequence[int], cache: Any = None
    ) -> dict[str, Any]:
        if inputs.device.type == "meta":
            return {"attention_mask": dict.fromkeys(KINDS, _meta_mask(self.net, inputs))}
        more = inputs.shape[1] - len(prefixes[0].tokens)
        image = torch.stack([F.pad(p.image, (0, more)) for p in prefixes])
        blocks = get_block_sequence_ids_for_mask(image.int())
        return {"attention_mask": create_masks_for_vision_model(self.net.config, inputs, None, cache, None, blocks)}


KINDS = ("full_attention", "sliding_attention")


class SeesPrompts(Stream):
    """Image and prompt see one another both ways (prefix-LM), so that an image's keys depend on the question: nothing
    is shared. What the model writes sees what stands before it. Positions begin at 1."""

    def read(self, images: Any, owner: Tensor, prompts: Ids) -> Iterator[tuple[list[int], Read]]:
        slot = owner.tolist()
        for same in by_size(images, slot):
            rows = [row for row, i in enumerate(slot) if i in set(same)]
            for index, ids in by_length([prompts[row] for row in rows], ROWS):
                prefixes = [images[slot[rows[i]]] for i in index]
                shown = torch.stack([p.tokens for p in prefixes])
                inputs = torch.cat([shown, self.embed(ids.to(self.device)).to(shown)], 1)
                cache = Placed()
                output = self.net(
                    inputs_embeds=inputs, **with_cache(self.net, cache), **self._where(prefixes, ids.shape[1]),
                    **self._seen(prefixes, inputs, [ids.shape[1]] * len(index), cache),
                )  # fmt: skip
                yield [rows[i] for i in index], Read(self.head(output.last_hidden_state[:, -1]), cache)

    def _where(self, prefixes: Sequence[Prefix], more: int) -> dict[str, Tensor]:
        length = len(prefixes[0].tokens) + more
        return {"position_ids": torch.arange(1, length + 1, device=self.device)[None]}

    def _next(self, line: Tensor, shift: Tensor | None) -> dict[str, Tensor]:
        return {"position_ids": line[None] + 1}

    def _seen(
        self, prefixes: Sequence[Prefix], inputs: Tensor, read: Sequence[int], cache: Any = None
    ) -> dict[str, Any]:
        if inputs.device.type == "meta":
            return {"attention_mask": dict.fromkeys(KINDS, _meta_mask(self.net, inputs))}
        line = torch.arange(inputs.shape[1], device=inputs.device)
        ends = torch.tensor([len(p.tokens) + n for p, n in zip(prefixes, read, strict=True)], device=inputs.device)
        blocks = torch.where(line < ends[:, None], 0, -1)
        arguments = {
            "config": self.net.config, "inputs_embeds": inputs, "attention_mask": None, "cache": cache,
            "block_sequence_ids": blocks,
        }  # fmt: skip
        masks = create_causal_mask(**arguments), create_sliding_window_causal_mask(**arguments)
        return {"attention_mask": dict(zip(KINDS, masks, strict=True))}
