"""SigLIP (Zhai et al. 2023, arXiv 2303.15343) and SigLIP 2 (Tschannen et al. 2025, arXiv 2502.14786) on transformers.

    loss = -mean over images of the sum over texts of log sigmoid(z (s x . y + b)), z = 1 for a pair and -1 else

Texts are in small letters, of 64 tokens with their padding, which is read like words. The head that pools the patches
by a learned query stays dense. Checkpoints that keep the shape of an image (NaFlex) are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import SiglipConfig, SiglipModel

from vlbench.capability import Batch, Matcher, Outputs, Prediction, Stage, both_ways, embedded
from vlbench.errors import UserError
from vlbench.model import Card, Model, family, read_config
from vlbench.nn import library
from vlbench.nn.stock import Stock
from vlbench.structure import Structure
from vlbench.tensors.reading import load_into, read_weights, refuse_others

from ._prompted import Config, constructed, of_library, read_kind, unfilled
from ._tokenizer import read_tokenizer


@family("siglip.json")
class Siglip(Model, Matcher):
    """encode: the ViT's tokens after the last norm. embed: these, pooled, and texts; both of length one."""

    net: Any
    tokenizer: Any

    @classmethod
    def build(cls, card: Card, config: Config, folder: Path) -> Siglip:
        net = constructed(card, lambda sizes: SiglipModel(SiglipConfig.from_dict(sizes)), config).eval()
        model = cls(card, config, library.adopt(net))
        model.tokenizer = read_tokenizer(folder, int(net.config.text_config.vocab_size))
        return model

    @classmethod
    def open(cls, card: Card, folder: Path) -> Siglip:
        """A folder of transformers: config.json, *.safetensors, the tokenizer."""
        home = folder if folder.is_dir() else folder.parent
        if read_config(home).get("model_type") == "siglip2":
            raise UserError(
                f"{home} is a SigLIP 2 that keeps the shape of an image (NaFlex), which is not supported: use one of a "
                f"fixed size, like {card.checkpoint}."
            )
        weights = {k: v for k, v in read_weights(folder).items() if not k.endswith("position_ids")}
        refuse_others(weights, "a SigLIP", ("vision_model.head.probe", "logit_bias"))
        model = unfilled(cls.build, card, read_kind(home, "siglip"), home)
        load_into(model.net, weights)
        return model

    @classmethod
    def architecture(cls, card: Card) -> Config:
        return dict(card.architecture)

    def save_assets(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)

    def structure(self) -> Structure:
        towers = ("vision", "text")
        return Structure(tuple(library.tower(self.net, f"{name}_model.encoder.layers", name) for name in towers))

    def stock(self) -> Stock:
        return of_library(self.net, library.cut_attributes(self.net))

    def stages(self) -> tuple[Stage, ...]:
        """Both towers."""
        ids = {"ids": ("texts", "tokens")}
        text = Stage("text_features", "text_features", ids, lambda model, *tensors: model.text_features(*tensors))
        return (*super().stages(), text)

    def encode(self, images: Tensor) -> Tensor:
        """(I, 3, S, S) -> (I, N, D), normalised."""
        tower = self.net.vision_model
        states: Tensor = tower.post_layernorm(tower.encoder(inputs_embeds=tower.embeddings(images)).last_hidden_state)
        return states

    def image_features(self, states: Tensor) -> Tensor:
        """(I, d), not normalised."""
        features: Tensor = self.net.vision_model.head(states)
        return features

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """(T, L) ids, padded to the length of training: a padded text's state is that of its last padding."""
        length = int(self.net.config.text_config.max_position_embeddings)
        if not texts:
            return torch.zeros(0, length, dtype=torch.long, device=self.device)
        ids: Tensor = self.tokenizer(
            [text.lower() for text in texts], padding="max_length", truncation=True, max_length=length,
            return_tensors="pt",
        ).input_ids  # fmt: skip
        return ids.to(self.device)

    def text_features(self, ids: Tensor) -> Tensor:
        """(T, L) ids -> (T, d), not normalised."""
        features: Tensor = self.net.text_model(ids, return_dict=True).pooler_output
        return features

    def embed(self, states: Tensor, batch: Batch) -> Sequence[Prediction]:
        images = _directions(self.image_features(states))
        texts = _directions(self.text_features(self.tokens([t for s in batch.samples for t in s.texts])))
        return embedded(batch, images, texts)

    def match_outputs(self, batch: Batch) -> Outputs:
        """The texts of one image are right for one another."""
        owner = batch.owner[:, 0]
        images = _directions(self.image_features(self.encode(batch.images)))[owner]
        texts = _directions(self.text_features(self.tokens([s.texts[0] for s in batch.samples])))
        logits = images @ texts.T * self.net.logit_scale.exp() + self.net.logit_bias
        sign = 2 * (owner[:, None] == owner).to(logits.dtype) - 1
        return Outputs(lambda: -F.logsigmoid(sign * logits).sum(1).mean(), both_ways(logits))


def _directions(features: Tensor) -> Tensor:
    """(n, d) of length one, in float32 at least."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
