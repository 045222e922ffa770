"""What BLIP's heads share: opening a checkpoint of any kind, its configuration, tokenizer and image encoder.

Checkpoints come as a hub folder (transformers' keys), or as one file of the original project (salesforce/BLIP, UPop):
then the configuration is read off the tensors, and what they do not tell (the number of heads) off the card's own
architecture, or off a config.json beside the file. UPop's compressed files are cut per layer: the same, and narrower.
"""

from __future__ import annotations

import copy
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import BlipConfig

from vlbench.capability import Stage
from vlbench.compression.shapes import fit_to, narrow
from vlbench.errors import UserError
from vlbench.model import Card, Model, read_config
from vlbench.nn import blip
from vlbench.nn.stock import Stock
from vlbench.tensors.reading import load_into, read_weights, refuse_others

from ._blip_keys import converted, is_original
from ._blip_text import check_tokenizer, read_tokenizer

Config = dict[str, Any]
LOADERS = Path(__file__).parent / "loaders"
HEAD = 64  # numbers a head in every released BLIP
POSITIONS = "vision_model.embeddings.position_embedding"
# BLIP-base: ViT-B/16 and configs/med_config.json, whose dropout the originals train with.
VISION: Config = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "patch_size": 16, "layer_norm_eps": 1e-6, "attention_dropout": 0.0,
}  # fmt: skip
TEXT: Config = {
    "vocab_size": 30524, "hidden_size": 768, "encoder_hidden_size": 768, "intermediate_size": 3072,
    "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 512, "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
    "bos_token_id": 30522, "pad_token_id": 0, "sep_token_id": 102,
}  # fmt: skip


def text_stage(name: str, *images: str) -> Stage:
    """The text encoder that attends to the states of one image or more, each with a row a text.

    Elsewhere states have no owner: a text brings its images' states along, and keys are computed once a text.
    """
    inputs = {"ids": ("texts", "tokens"), "mask": ("texts", "tokens"), **dict.fromkeys(images, ("texts", "", ""))}

    def compute(model: Any, ids: Tensor, mask: Tensor, *states: Tensor) -> Tensor:
        context = states if len(images) > 1 else states[0]
        added = _added(mask, states[0].dtype)
        out = model.net.text_encoder(
            input_ids=ids, attention_mask=added, encoder_hidden_states=context, use_cache=False
        )
        hidden: Tensor = out.last_hidden_state
        return hidden

    def tensors(
        *, input_ids: Tensor, attention_mask: Tensor | None, encoder_hidden_states: Any, **_: Any
    ) -> tuple[Tensor, ...]:
        shared = encoder_hidden_states if isinstance(encoder_hidden_states, tuple) else (encoder_hidden_states,)
        mask = torch.ones_like(input_ids) if attention_mask is None else (attention_mask[:, 0, 0] == 0).long()
        return input_ids, mask, *(one.states[one.owner] for one in shared)

    return Stage(name, "net.text_encoder.forward", inputs, compute, tensors, _Hidden)


@dataclass(frozen=True)
class _Hidden:
    """What is read of a text encoder's answer."""

    last_hidden_state: Tensor


B = TypeVar("B", bound="Blip")


class Blip(Model):
    """A head on BLIP's ViT and BERT. Its configuration is transformers', and besides:

    widths: site -> units, of a checkpoint that came already cut. softmax_scale: "kept" where the text attentions
    divide by the root of the kept head size (UPop's compressed files were trained so), else by that of the original.
    """

    net: Any
    tokenizer: Any
    bos: int
    enc: int

    @classmethod
    @abstractmethod
    def network(cls, config: Config) -> nn.Module:
        """The head's module with random weights and the library's own attention."""

    @classmethod
    def build(cls: type[B], card: Card, config: Config, folder: Path) -> B:
        model = cls(card, config, blip.adopt(cls.network(config)).eval())
        narrow(model.net, model.structure(), config.get("widths", {}))
        if config.get("softmax_scale") == "kept":
            blip.scale_by_kept_width(model.net)
        text = model.net.config.text_config
        model.tokenizer = read_tokenizer(folder)
        check_tokenizer(model.tokenizer, text, folder)
        # BLIP's tokenizer adds [DEC] (start of a text to write), then [ENC] (of a text with an image) to BERT's words.
        model.bos, model.enc = text.bos_token_id, text.bos_token_id + 1
        return model

    @classmethod
    def open(cls: type[B], card: Card, folder: Path) -> B:
        """A hub folder, the weights file of one, or one of the original project (see the module's docstring)."""
        raw = read_weights(folder)
        weights = cls.complete(converted(raw))
        _refuse_others(weights)
        home = folder if folder.is_dir() else folder.parent
        described = (home / "config.json").is_file() and not (folder.is_file() and is_original(raw))
        config = read_config(home) if described else cls.config_of(card, weights, home)
        config.setdefault("vision_config", {})["image_size"] = card.image.size
        model = cls.build(card, config, home)
        if POSITIONS in weights and weights[POSITIONS].ndim == 3:
            count = model.net.state_dict()[POSITIONS].shape[1]
            weights[POSITIONS] = blip.resized_positions(weights[POSITIONS], count)
        widths = fit_to(model.net, model.structure(), weights) if is_original(raw) else {}
        if widths:
            config.update(widths=widths, softmax_scale="kept")
            blip.scale_by_kept_width(model.net)
        load_into(model.net, weights)
        return model

    @classmethod
    def complete(cls, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights with what a format leaves out."""
        return weights

    @classmethod
    def sizes_of(cls, shapes: Mapping[str, tuple[int, ...]]) -> Config:
        """Configuration of the head that the shapes of its own tensors tell."""
        return {}

    @classmethod
    def architecture(cls, card: Card) -> Config:
        """BLIP-base at the card's image size; of a mini card, the config.json that lies in the package."""
        if card.suite == "mini":
            return read_config(Path(__file__).parent / "mini" / card.name)
        vision = {**VISION, "image_size": card.image.size}
        return card.sized({"model_type": "blip", "vision_config": vision, "text_config": dict(TEXT)})

    @classmethod
    def config_of(cls, card: Card, weights: Mapping[str, Tensor], home: Path) -> Config:
        """The configuration of weights in transformers' keys, which come without one. What they do not say is as in
        the config.json beside them, else as in the card's architecture."""
        has_own = (home / "config.json").is_file()
        config = copy.deepcopy(read_config(home) if has_own else cls.architecture(card))
        tokenizer = read_tokenizer(home)
        shapes = {key: tuple(tensor.shape) for key, tensor in weights.items()}
        config["vision_config"] = {**VISION, **config.get("vision_config", {})}
        config["text_config"] = {**TEXT, **config.get("text_config", {})}
        _read_vision(config["vision_config"], shapes)
        _read_text(config["text_config"], shapes)
        config.update(cls.sizes_of(shapes))
        ids = {"sep_token_id": tokenizer.sep_token_id, "pad_token_id": tokenizer.pad_token_id}
        config["text_config"].update(ids, encoder_hidden_size=config["vision_config"]["hidden_size"])
        return config

    def save_assets(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)

    def stock(self) -> Stock:
        """transformers' class of this head."""
        return Stock.of(
            {"class": type(self.net).__name__, "attention": blip.cut_attributes(self.net)},
            LOADERS / "blip.py",
            needs_heads=True,
        )

    def encode(self, images: Tensor) -> Tensor:
        """(I, 3, H, W) -> (I, N, D) image tokens."""
        states: Tensor = self.net.vision_model(pixel_values=images).last_hidden_state  # (I, 1 + patches, D)
        return states

    def token_ids(self, texts: Sequence[str], limit: int, first: int | None = None) -> list[list[int]]:
        """Token ids of each text, at most `limit`: [CLS], or `first` in its place, words, [SEP]."""
        limit = min(limit, self.net.config.text_config.max_position_embeddings)
        tokens: list[list[int]] = self.tokenizer(list(texts), truncation=True, max_length=limit).input_ids
        return tokens if first is None else [[first, *ids[1:]] for ids in tokens]

    def padded(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, (n, L) each, padded to the longest."""
        length = max(map(len, ids))
        pad = self.tokenizer.pad_token_id
        rows = torch.tensor([[*one, *[pad] * (length - len(one))] for one in ids], device=self.device)
        sizes = torch.tensor([len(one) for one in ids], device=self.device)  # (n,)
        return rows, (torch.arange(length, device=self.device) < sizes[:, None]).long()

    def added_mask(self, ids: Sequence[Sequence[int]], mask: Tensor) -> Tensor | None:
        """The mask (n, 1, L, L) that the library would make of that of `padded` and add to its logits; None where
        nothing is padded. Given its own, the library looks at the values, and waits for the device."""
        if not uneven(ids):
            return None
        return _added(mask, self.dtype)

    def shown(self, ids: Tensor) -> str:
        """The text of token ids, with the spaces before punctuation gone (the default of transformers 4.15, by which
        the published captions were written)."""
        words = [i for i in ids.tolist() if i < self.bos]
        text: str = self.tokenizer.decode(words, skip_special_tokens=True, clean_up_tokenization_spaces=True)
        return text


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(n, L), 1 = a token -> (n, 1, L, L), the lowest number where a column is padding."""
    added = torch.zeros_like(mask, dtype=dtype).masked_fill(mask == 0, torch.finfo(dtype).min)
    return added[:, None, None, :].expand(-1, -1, mask.shape[1], -1)


def uneven(ids: Sequence[Sequence[int]]) -> bool:
    """Whether texts differ in length, so that some are padded."""
    return len(set(map(len, ids))) > 1


def _refuse_others(weights: Mapping[str, Tensor]) -> None:
    """Raise UserError for weights of no head of BLIP; those of another head are told by load_into."""
    needed = ["vision_model.embeddings.class_embedding"]
    if not any(key.startswith(("text_encoder.", "text_decoder.")) for key in weights):
        needed.append("text_encoder.embeddings.word_embeddings.weight")
    refuse_others(weights, "a BLIP", needed)


def _read_vision(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Width, depth, patch, FFN and heads of the ViT into `config`, as far as the shapes tell them."""
    patch = shapes.get("vision_model.embeddings.patch_embedding.weight")
    if patch is not None and len(patch) == 4:
        _set_width(config, patch[0], "vision_config")
        config["patch_size"] = patch[-1]
    _read_layers(config, shapes, r"vision_model\.encoder\.layers", "mlp.fc1.weight")


def _read_text(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """The same of the text towers (VQA's two are alike), and the vocabulary, whose last two words are [DEC], [ENC]."""
    for prefix in ("text_encoder", "text_decoder.bert"):
        words = shapes.get(f"{prefix}.embeddings.word_embeddings.weight")
        if words is not None and len(words) == 2:
            _set_width(config, words[1], "text_config")
            config.update(vocab_size=words[0], bos_token_id=words[0] - 2)
        positions = shapes.get(f"{prefix}.embeddings.position_embeddings.weight")
        if positions is not None:
            config["max_position_embeddings"] = positions[0]
    _read_layers(config, shapes, r"text_(?:encoder|decoder\.bert)\.encoder\.layer", "intermediate.dense.weight")


def _set_width(config: Config, width: int, name: str) -> None:
    """The residual width, and with it the heads and the FFN, which a file that is cut does not show."""
    if width == config["hidden_size"]:
        return
    if width % HEAD:
        raise UserError(
            f"these weights are {width} wide, which does not tell how many attention heads they have: put a "
            f'config.json beside them with "{name}": {{"hidden_size": {width}, "num_attention_heads": ...}}.'
        )
    config.update(hidden_size=width, num_attention_heads=width // HEAD, intermediate_size=4 * width)


def _read_layers(config: Config, shapes: Mapping[str, tuple[int, ...]], prefix: str, up: str) -> None:
    """Depth and FFN width. Every layer of a file may be cut, so that the FFN is at least what is configured."""
    matches = {key: re.match(rf"{prefix}\.(\d+)\.", key) for key in shapes}
    layers = [int(match[1]) for match in matches.values() if match]
    widths = [shapes[key][0] for key, match in matches.items() if match and key.endswith(up)]
    if layers and widths:
        config["num_hidden_layers"] = max(layers) + 1
        config["intermediate_size"] = max(config["intermediate_size"], *widths)


def blip_config(config: Config) -> Any:
    """transformers' configuration object."""
    return BlipConfig.from_dict(config)
