"""What BLIP-2 and InstructBLIP share: how a checkpoint is opened, their architectures, the ViT and the Q-Former."""

from __future__ import annotations

import re
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from vlbench.model import Card, Model
from vlbench.nn import blip, blip2_vision, llama, opt, qformer, t5
from vlbench.nn.stock import Stock
from vlbench.nn.stream import reads_from_others
from vlbench.structure import Tower
from vlbench.tensors.reading import load_into, read_weights, refuse_others

from ._prompted import constructed, of_library, read_kind, unfilled
from ._tokenizer import read_tokenizer

Config = dict[str, Any]
POSITIONS = "vision_model.embeddings.position_embedding"
DROPPED = re.compile(r"position_ids$|rotary_emb\.inv_freq$")  # buffers that older versions of transformers stored
WORDS = 30523  # of the released Q-Formers: BERT's and [DEC]

# EVA-CLIP ViT-g/14 without its last layer, and the Q-Former: BERT-base with 32 queries (arXiv 2301.12597, section 3).
VISION: Config = {
    "hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39, "num_attention_heads": 16,
    "patch_size": 14, "layer_norm_eps": 1e-6, "hidden_act": "gelu", "qkv_bias": True,
}  # fmt: skip
QFORMER: Config = {
    "vocab_size": WORDS, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "encoder_hidden_size": 1408, "cross_attention_frequency": 2, "layer_norm_eps": 1e-12,
}  # fmt: skip
QUERIES = 32
PROJECTION = ["language_projection"]  # makes the tokens of an image


M = TypeVar("M", bound="Blip2Folder")


class Blip2Folder(Model):
    """A model of transformers' BLIP-2 or InstructBLIP in a hub folder. Its configuration is transformers'."""

    model_type: ClassVar[str] = "blip-2"  # transformers' name
    net: Any
    tokenizer: Any

    @classmethod
    @abstractmethod
    def network(cls, config: Config) -> nn.Module:
        """The library's module with its own attention."""

    @abstractmethod
    def vocabulary(self) -> int:
        """How many words the tokenizer may have."""

    def read_assets(self, folder: Path) -> None:
        """The tokenizer files in `folder`."""
        self.tokenizer = read_tokenizer(folder, self.vocabulary())

    def save_assets(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def build(cls: type[M], card: Card, config: Config, folder: Path) -> M:
        net = constructed(card, cls.network, config).eval()
        for part in (blip2_vision, qformer, t5, opt, llama):
            part.adopt(net)
        _tie(net)
        model = cls(card, config, net)
        model.read_assets(folder)
        return model

    @classmethod
    def open(cls: type[M], card: Card, folder: Path) -> M:
        """A folder with config.json, one or more *.safetensors, and the tokenizer."""
        home = folder if folder.is_dir() else folder.parent
        weights = {k: v for k, v in read_weights(folder).items() if not DROPPED.search(k)}
        refuse_others(weights, f"a model with a Q-Former, as {card.name} is", ("query_tokens",))
        config = read_kind(home, cls.model_type)
        config.setdefault("vision_config", {})["image_size"] = card.image.size
        model = unfilled(cls.build, card, config, home)
        _tie(model.net)  # again: unfilled() ties as the library does
        if POSITIONS in weights:
            count = model.net.state_dict()[POSITIONS].shape[1]
            weights[POSITIONS] = blip.resized_positions(weights[POSITIONS], count)
        load_into(model.net, weights)
        return model

    def stock(self) -> Stock:
        """transformers' class of this model."""
        attributes = {
            k: v for part in (blip2_vision, qformer, t5, opt, llama) for k, v in part.cut_attributes(self.net).items()
        }
        return of_library(self.net, attributes)

    def vision(self, images: Tensor) -> Tensor:
        """(I, 3, H, W) -> (I, N, D) image tokens of the ViT."""
        states: Tensor = self.net.vision_model(pixel_values=images).last_hidden_state
        return states

    def queries(self, rows: int) -> Tensor:
        """(rows, queries, D) the Q-Former's learned queries."""
        queries: Tensor = self.net.query_tokens.repeat(rows, 1, 1)  # no view: the counter of FLOPs stumbles over those
        return queries


def _tie(net: Any) -> None:
    """Tie what the configuration ties and no more. transformers 5 ties T5's lm_head to its embeddings whatever is
    configured, and parts them only in its own loading code where a file has both: in FlanT5 they are different."""
    net.tie_weights()
    language = getattr(net, "language_model", None)
    if language is not None and not getattr(language.config, "scale_decoder_outputs", True):
        language.lm_head.weight = nn.Parameter(language.lm_head.weight.detach().clone())


def vision_tower(net: Any) -> Tower:
    """The ViT, whose states the Q-Former attends to."""
    return blip2_vision.vision_tower(net, read_by=reads_from_others([qformer.tower(net)]))


def language_towers(net: Any) -> tuple[Tower, ...]:
    """The towers of net.language_model: T5's encoder and decoder, or the decoder of OPT or Llama."""
    at = "language_model"
    if net.language_model.config.is_encoder_decoder:
        return (
            t5.tower(net, f"{at}.encoder.block", "encoder"),
            t5.tower(net, f"{at}.decoder.block", "decoder"),
        )
    if net.language_model.config.model_type == "opt":
        return (opt.tower(net, f"{at}.model.decoder.layers", read_by=[f"{at}.lm_head"], written_by=PROJECTION),)
    return (llama.tower(net, f"{at}.model.layers", read_by=[f"{at}.lm_head"], written_by=PROJECTION),)


def attended(states: Tensor, owner: Tensor) -> Any:
    """What rows cross-attend to: their image's states, shared where there are more rows than images."""
    from vlbench.nn.attend import Shared

    if len(owner) > len(states):
        return Shared.among(states, owner, cache=not torch.is_grad_enabled())
    return states[owner]
