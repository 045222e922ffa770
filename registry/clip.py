"""CLIP (Radford et al. 2021, arXiv 2103.00020) on open_clip: images and texts in one space."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import text_global_pool
from torch import Tensor

from vlbench.capability import Batch, Matcher, Outputs, Pairs, Prediction, Stage, Views, contrasted, embedded
from vlbench.compression.shapes import fit_to, narrow
from vlbench.errors import UserError
from vlbench.model import Card, Model, family, read_config
from vlbench.nn import open_clip as adopted
from vlbench.nn.stock import Stock
from vlbench.structure import Structure
from vlbench.tensors.locate import locate
from vlbench.tensors.reading import load_into

from . import _clip_keys as keys
from ._tokenizer import read_tokenizer

BPE_WORDS = 49408  # in the vocabulary that open_clip ships
LARGEST_SCALE = 100.0  # of the logits in training, as the paper clips it

Tokenize = Callable[[Sequence[str]], Tensor]


@family("clip.json")
class CLIP(Model, Matcher):
    """encode: the ViT's tokens after the last norm. embed: the class token projected; texts; both of length one. What
    UPop publishes as "uncompressed" is of finetuned weights and not of these; its l1 of CLIP is 22 / 15 x 8e-3."""

    hardens = True

    net: Any
    tokenizer: Any

    @classmethod
    def build(cls, card: Card, config: dict[str, Any], folder: Path) -> CLIP:
        """config: open_clip's model_cfg, and besides: widths, of the sites that a checkpoint has cut; softmax_scale:
        "kept" where attention divides by the root of what is left of a head (UPop's), not of what the head was."""
        keys.refuse_unknown(config)
        arguments = {k: v for k, v in copy.deepcopy(config).items() if k not in keys.OURS}
        model = cls(card, config, adopted.adopt(open_clip.CLIP(**arguments)).eval())
        model.tokenizer = _tokenizer(config, folder)
        if config.get("widths"):
            narrow(model.net, model.structure(), config["widths"])
        if config.get("softmax_scale") == "kept":
            adopted.rescale(model.net)
        return model

    @classmethod
    def open(cls, card: Card, folder: Path) -> CLIP:
        """A folder of open_clip's, or one file with OpenAI's keys, whole or cut by UPop."""
        config, tensors = keys.read(folder)
        if config is None or "vision_cfg" not in config:
            given, config = config or {}, keys.inferred(tensors)
            published = cls.architecture(card)
            if "quick_gelu" not in given and card.suite == "full" and not keys.tells_activation(tensors):
                raise UserError(keys.ASKED.format(source=folder))
            config = {**(published if keys.same_dims(config, published) else config), **given}
        model = cls.build(_of_size(card, config), config, folder)
        if keys.is_original(tensors):
            model.load(tensors)
        else:
            load_into(model.net, tensors)
        return model

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Load weights with the original's keys; the model takes their widths, and UPop's scale, where they are cut."""
        tensors = keys.converted(tensors)
        widths = fit_to(self.net, self.structure(), tensors)
        if widths:
            widths = {**self.config.get("widths", {}), **widths}
            self.config = {**self.config, "widths": widths, "softmax_scale": "kept"}
            adopted.rescale(self.net)
        load_into(self.net, tensors)

    @classmethod
    def architecture(cls, card: Card) -> dict[str, Any]:
        if card.suite == "mini":
            return read_config(locate(card.checkpoint, card.revision, {}))
        config: dict[str, Any] = open_clip.get_model_config(str(card.architecture["open_clip"]))
        return config

    def save_assets(self, folder: Path) -> None:
        if isinstance(self.tokenizer, _Words):
            self.tokenizer.words.save_pretrained(folder)

    def structure(self) -> Structure:
        return Structure((adopted.vision_tower(self.net), adopted.text_tower(self.net)))

    def stock(self) -> Stock:
        return Stock.of({"attention": adopted.cut_attributes(self.net)}, Path(__file__).parent / "loaders" / "clip.py")

    def stages(self) -> tuple[Stage, ...]:
        """Both towers."""
        ids = {"ids": ("texts", "tokens")}
        text = Stage("text_features", "text_features", ids, lambda model, *tensors: model.text_features(*tensors))
        return (*super().stages(), text)

    def encode(self, images: Tensor) -> Tensor:
        """(I, 3, H, W) -> (I, 1 + patches, D), normalised; the class token first."""
        visual = self.net.visual
        states: Tensor = visual.ln_post(visual.transformer(visual._embeds(images)))
        return states

    def embed(self, states: Tensor, batch: Batch) -> Sequence[Prediction]:
        images = _directions(self.image_features(states))
        texts = _directions(self.text_features(self.tokens([t for s in batch.samples for t in s.texts])))
        return embedded(batch, images, texts)

    def match_outputs(self, batch: Batch) -> Outputs:
        pairs = self._pairs_of(batch, self._tokens_of(batch))
        hardness = batch.options.get("hardness", 0.0)
        return contrasted(pairs.images, pairs.texts, batch.owner[:, 0], self._scale(), hardness)

    def match_momentum(self, batch: Batch, twin: Any) -> Views:
        """As UPop's code, where the queue takes the model's own features and not the twin's, and the twin's texts go
        through the model's last norm."""
        ids = self._tokens_of(batch)
        pairs = self._pairs_of(batch, ids)
        with torch.no_grad():
            of_twin = twin._pairs_of(batch, ids, self.net.ln_final)
        return Views(pairs, of_twin, pairs, self._scale())

    def _tokens_of(self, batch: Batch) -> Tensor:
        return self.tokens([s.texts[0] for s in batch.samples])

    def _pairs_of(self, batch: Batch, ids: Tensor, norm: torch.nn.Module | None = None) -> Pairs:
        images = _directions(self.image_features(self.encode(batch.images)))[batch.owner[:, 0]]
        return Pairs(images, _directions(self.text_features(ids, norm)))

    def _scale(self) -> Tensor:
        scale: Tensor = self.net.logit_scale.exp().clamp(max=LARGEST_SCALE)
        return scale

    def image_features(self, states: Tensor) -> Tensor:
        """(I, d), not normalised."""
        features: Tensor = states[:, 0] @ self.net.visual.proj
        return features

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """(T, L) ids. A causal tower sees nothing after a text's end, so that L is the longest text's length."""
        ids: Tensor = self.tokenizer(list(texts)) if texts else torch.zeros(0, 1, dtype=torch.long)
        return ids.to(self.device)

    def text_features(self, ids: Tensor, norm: torch.nn.Module | None = None) -> Tensor:
        """(T, L) ids -> (T, d), not normalised: the state at the end of each text, which is its highest id (OpenAI's
        rule) or the first `eos_id` (the mini vocabulary's ids are not in that order), as the configuration says.
        norm: takes the place of the model's last one."""
        net, length = self.net, ids.shape[1]
        mask = None if net.attn_mask is None else net.attn_mask[:length, :length]
        hidden = net.token_embedding(ids) + net.positional_embedding[:length]
        hidden = (norm or net.ln_final)(net.transformer(hidden, attn_mask=mask))
        pooled = text_global_pool(hidden, ids, net.text_pool_type, net.text_eos_id)
        project = net.text_projection
        features: Tensor = project(pooled) if isinstance(project, torch.nn.Linear) else pooled @ project
        return features


def _of_size(card: Card, config: dict[str, Any]) -> Card:
    """The card with the image size of the network, which the positions of the weights prove."""
    size = config.get("vision_cfg", {}).get("image_size", card.image.size)
    return replace(card, image=replace(card.image, size=size)) if isinstance(size, int) else card


def _directions(features: Tensor) -> Tensor:
    """(n, d) of length one, in float32 at least."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)


class _Words:
    """A tokenizer of transformers, which stands in the model's folder."""

    def __init__(self, folder: Path, length: int, vocabulary: int) -> None:
        self.words: Any = read_tokenizer(folder, vocabulary)
        self.length = length

    def __call__(self, texts: Sequence[str]) -> Tensor:
        encoded = self.words(
            list(texts), padding="longest", truncation=True, max_length=self.length, return_tensors="pt"
        )
        ids: Tensor = encoded.input_ids
        return ids


class _Pieces:
    """OpenAI's byte pairs, which come with open_clip. Longer texts are cut, their last token the end."""

    def __init__(self, length: int, vocabulary: int) -> None:
        self.pieces: Any = open_clip.SimpleTokenizer(context_length=length)
        self.vocabulary = vocabulary

    def __call__(self, texts: Sequence[str]) -> Tensor:
        if self.vocabulary != BPE_WORDS:
            raise UserError(
                f"this CLIP has a vocabulary of {self.vocabulary} and no tokenizer: give a folder that holds both."
            )
        ids: Tensor = self.pieces(list(texts))
        return ids[:, : int(ids.argmax(1).max()) + 1]


def _tokenizer(config: dict[str, Any], folder: Path) -> Tokenize:
    """open_clip's rule: the folder's own where the configuration names one."""
    text = config["text_cfg"]
    sizes = text.get("context_length", 77), text.get("vocab_size", BPE_WORDS)
    return _Words(folder, *sizes) if text.get("hf_tokenizer_name") else _Pieces(*sizes)
