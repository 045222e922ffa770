"""BLIP (Li et al. 2022, arXiv 2201.12086) on parts of transformers: the NLVR2 head, a sentence about two images."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from vlbench.capability import Awaited, Batch, Judge, Outputs, Prediction, Stage, marked, unmarked
from vlbench.model import family
from vlbench.nn import blip
from vlbench.nn.attend import Shared
from vlbench.nn.stock import Stock
from vlbench.nn.stream import reads_from_others
from vlbench.structure import Structure

from ._blip import LOADERS, Blip, Config, blip_config, text_stage
from ._blip_text import clean_caption

MERGE_FROM = 6  # the first text layer with a merge_layer (models/nlvr_encoder.py)
MAX_WORDS = 40  # of a sentence
MAX_TOKENS = 512


@family("blip_nlvr.json")
class BlipNlvr(Blip, Judge):
    """encode: the ViT, once for each distinct image. judge: the sentence attends to the left and the right image, by
    two attentions a layer. The weights are on no hub: BLIP's own file (github.com/salesforce/BLIP) lies in the
    `weights` root, or is given as checkpoint=FILE. The configuration's `merge_from`: the first layer that joins the two
    by a matrix."""

    @classmethod
    def network(cls, config: Config) -> nn.Module:
        return _Network(blip_config(config), config.get("merge_from", MERGE_FROM))

    @classmethod
    def sizes_of(cls, shapes: Mapping[str, tuple[int, ...]]) -> Config:
        matches = (re.search(r"layer\.(\d+)\.crossattention\.output\.merge_layer\.weight$", key) for key in shapes)
        merging = [int(match[1]) for match in matches if match]
        return {"merge_from": min(merging)} if merging else {}

    def structure(self) -> Structure:
        text = blip.text_tower(self.net, "text_encoder.encoder.layer", "text", read_by=["cls_head.0"])
        return Structure((blip.vision_tower(self.net, read_by=reads_from_others([text])), text))

    def stock(self) -> Stock:
        """transformers has no class of this head: network.py has it."""
        facts = {"attention": blip.cut_attributes(self.net)}
        return Stock.of(facts, LOADERS / "blip_nlvr.py", LOADERS / "blip_nlvr_network.py", needs_heads=True)

    def stages(self) -> tuple[Stage, ...]:
        """The ViT, and the text encoder with both images in view; its head is two small matrices."""
        return (*super().stages(), text_stage("sentence", "left", "right"))

    def judge(self, states: Any, batch: Batch) -> Sequence[Prediction]:
        """A sentence is true where the second logit is the larger one."""
        logits = self.logits(states, [s.text for s in batch.samples], batch.owner_on_host)
        best = marked(logits.argmax(1), logits.isfinite().all(1))
        return Awaited(len(logits), [best], lambda best: [{"answer": i == 1} for i in unmarked(best, "a logit")])

    def judge_outputs(self, batch: Batch) -> Outputs:
        logits = self.logits(self.encode(batch.images), [s.text for s in batch.samples], batch.owner)
        target = torch.tensor([int(s.target) for s in batch.samples], device=logits.device)
        return Outputs(lambda: F.cross_entropy(logits, target), [(logits, 1 / len(logits))])

    def logits(self, states: Tensor, texts: list[str], owner: Tensor) -> Tensor:
        """(n, 2) logits of false and true. owner (n, 2): left and right image of each sentence."""
        hidden, _ = self.text_states(states, texts, owner)
        logits: Tensor = self.net.cls_head(hidden[:, 0])
        return logits

    def text_states(self, states: Tensor, texts: list[str], owner: Tensor) -> tuple[Tensor, Tensor]:
        """(n, L, H) states of the sentences after attending to both images, and their mask (n, L)."""
        cleaned = [clean_caption(text, MAX_WORDS) for text in texts]
        texts_ids = self.token_ids(cleaned, MAX_TOKENS, self.enc)
        ids, mask = self.padded(texts_ids)
        sides = tuple(Shared.among(states, owner[:, side], cache=False) for side in (0, 1))
        added = self.added_mask(texts_ids, mask)
        out = self.net.text_encoder(input_ids=ids, attention_mask=added, encoder_hidden_states=sides, use_cache=False)
        return out.last_hidden_state, mask


class _Network(nn.Module):
    """ViT, BERT with twin cross-attention, and a classifier on [ENC]: BLIP_NLVR of transformers' parts."""

    def __init__(self, config: Any, merge_from: int) -> None:
        super().__init__()
        self.config = config
        self.vision_model: Any = BlipVisionModel(config.vision_config)
        self.text_encoder: Any = BlipTextModel(config.text_config, add_pooling_layer=False)
        for index, layer in enumerate(self.text_encoder.encoder.layer):
            layer.crossattention = blip.TwinCrossAttention(config.text_config, index, merge=index >= merge_from)
        width = config.text_config.hidden_size
        self.cls_head: Any = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
