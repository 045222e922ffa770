"""LLaVE (Lan et al. 2025, arXiv 2503.04812): LLaVA-OneVision that embeds images and texts by their last token.

    loss = CE(s q t^T + a sg(q t^T) off the diagonal), the mean of both directions: harder negatives weigh exp(a q t^T)

with scale s = 50 and hardness a = 9. Checkpoints are in the original layout (model_type llava_qwen). MMEB embeds an
image with another instruction as a query than as a candidate; here an image has one vector, with INSTRUCTION.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vlbench.capability import Batch, Matcher, Outputs, Prediction, contrasted
from vlbench.model import Card, family, read_config
from vlbench.nn.caches import with_cache
from vlbench.tensors.reading import fill, read_weights, refuse_others

from ._blip_text import by_length
from ._language import ROWS, _meta_mask
from ._llava_qwen import KEYS, configured
from ._prompted import unfilled
from ._stream import Prefix, by_size
from .llava_onevision import LlavaOnevision

INSTRUCTION = "Represent the given image."
CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"
    "<|im_start|>assistant\n\n<|im_end|>\n"
)


@family("llave.json")
class Llave(LlavaOnevision, Matcher):
    """embed: the state after the last token, of length one. hardness, logit_scale: of the configuration."""

    hardens = True

    prompts: ClassVar[dict[str, str]] = {"match": INSTRUCTION}
    marks: ClassVar[dict[str, tuple[str, ...]]] = {"match": ()}
    tells_hidden: ClassVar[bool] = False
    keys = KEYS
    several = False  # an image or a text is embedded alone

    @classmethod
    def open(cls, card: Card, folder: Path) -> Llave:
        """A folder of the original layout: config.json, *.safetensors with the vision tower, the tokenizer. What its
        config.json has of `vision_config`, `processor` and `prompts` comes first."""
        home = folder if folder.is_dir() else folder.parent
        weights = {cls.renamed(key): value for key, value in read_weights(folder, as_stored=True).items()}
        refuse_others(weights, cls.__name__, cls.telling)
        stated = read_config(home)
        prompts = {"chat": CHAT, "image": f"{cls.mark} ", **stated.get("prompts", {})}
        config = {**configured(stated, weights), "prompts": prompts}
        config["processor"] = {**config["processor"], **stated.get("processor", {})}
        model = unfilled(cls.build, card, config, home)
        fill(model.net, weights)
        return model

    def embed(self, states: Any, batch: Batch) -> list[Prediction]:
        texts = [text for s in batch.samples for text in s.texts]
        images, rest = self._image_vectors(states, self.owner_of(batch)), self.vectors([], [], texts)
        counts = [len(s.texts) for s in batch.samples]
        return [{"image": one, "texts": its} for one, its in zip(images, rest.split(counts), strict=True)]

    def match_outputs(self, batch: Batch) -> Outputs:
        images = self._image_vectors(self.encode(batch.images), self.owner_of(batch))
        texts = self.vectors([], [], [s.texts[0] for s in batch.samples])
        first = torch.tensor([row[0] for row in self.owner_of(batch)], device=images.device)
        hardness = float(batch.options.get("hardness", self.config["hardness"]))
        return contrasted(images, texts, first, self.config["logit_scale"], hardness)

    def _image_vectors(self, states: Any, owner: Sequence[Sequence[int]]) -> Tensor:
        """(n, d) of the samples' images; one that several samples show is read once."""
        used = sorted({row[0] for row in owner})
        vectors = self.vectors(
            states, [[i] for i in used], [self.config["prompts"].get("match", INSTRUCTION)] * len(used)
        )
        return vectors[[used.index(row[0]) for row in owner]]

    def vectors(self, states: Any, owner: Sequence[Sequence[int]], texts: Sequence[str]) -> Tensor:
        """(n, d) of length one, in float32 at least, of users' turns, each with its images (none where owner is
        empty)."""
        rows = owner or [[]] * len(texts)
        prompts = [self.turn(text, len(images)) for text, images in zip(texts, rows, strict=True)]
        prefixes, slot = self.shown(states, rows, prompts)
        return self.last_states(prefixes, slot.tolist(), [self.prompt_ids(p) for p in prompts])

    def last_states(self, prefixes: Sequence[Prefix], slot: Sequence[int], ids: Sequence[Sequence[int]]) -> Tensor:
        """(n, d): the state after the last token of each row; those of one length together, so that nothing is
        padded."""
        net, parts, order = self.net.model.language_model, [], []
        for same in by_size(prefixes, slot):
            rows = [row for row, i in enumerate(slot) if i in set(same)]
            for index, tokens in by_length([ids[row] for row in rows], ROWS):
                shown = torch.stack([prefixes[slot[rows[i]]].tokens for i in index])
                inputs = torch.cat([shown, self.language.embed(tokens.to(self.device)).to(shown)], 1)
                out = net(inputs_embeds=inputs, attention_mask=_meta_mask(net, inputs), **with_cache(net, None))
                parts.append(out.last_hidden_state[:, -1])
                order += [rows[i] for i in index]
        vectors = torch.cat(parts)
        vectors = F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)
        return vectors[torch.tensor(order).argsort().to(vectors.device)]
