"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193; registers: 2309.16588) and DINOv3 (Simeoni et al. 2025, 2508.10104) on
transformers, with a linear head.

    logits = W [class token, mean of the patches] + b, after the last norm

A checkpoint is the backbone alone and a linear head beside it, in a file of its own, or both in one (transformers'
classifiers, facebook/dinov2-small-imagenet1k-1-layer).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from timm.data import ImageNetInfo
from torch import Tensor, nn

from vlbench.capability import Classifier
from vlbench.errors import UserError
from vlbench.model import Card, Model, family, read_config
from vlbench.nn import library
from vlbench.structure import Structure
from vlbench.tensors.reading import load_into, read_weights, refuse_others

from ._labels import names_by_id
from ._prompted import Config, constructed, unfilled

# model_type -> the class, and where its blocks stand.
KINDS = {
    "dinov2": ("Dinov2Model", "encoder.layer"),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", "encoder.layer"),
    "dinov3_vit": ("DINOv3ViTModel", "model.layer"),
}
PARTS = (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))
# Names of the published files -> today's.
KEYS = (
    (r"^(?:dinov2|dinov2_with_registers)\.", ""),
    *((rf"attention\.attention\.{old}\.", f"attention.{new}.") for old, new in PARTS),
    (r"attention\.output\.dense\.", "attention.o_proj."),
    (r"mlp\.weights_out\.", "mlp.down_proj."),
    (r"^layer\.", "model.layer."),
)


class Network(nn.Module):
    """backbone: of the library; classifier: the linear head."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        kind = config.get("model_type")
        if kind not in KINDS:
            raise ValueError(f"model_type {kind!r} is none of {', '.join(KINDS)}")
        cls = getattr(transformers, KINDS[kind][0])
        self.backbone = cls(cls.config_class.from_dict(config))
        self.prefix = 1 + int(getattr(self.backbone.config, "num_register_tokens", 0))
        self.classifier = nn.Linear(2 * self.backbone.config.hidden_size, int(config["classes"]))

    def forward(self, images: Tensor) -> Tensor:
        """(I, 3, H, W) -> (I, classes). Register tokens are no patches."""
        states = self.backbone(images, return_dict=True).last_hidden_state
        logits: Tensor = self.classifier(torch.cat([states[:, 0], states[:, self.prefix :].mean(1)], 1))
        return logits


@family("dino.json")
class Dino(Model, Classifier):
    """Its configuration is transformers', and besides: classes, of the head. encode gives the logits."""

    @classmethod
    def build(cls, card: Card, config: Config, folder: Path) -> Dino:
        net = constructed(card, Network, config).eval()
        model = cls(card, config, library.adopt(net))
        model.classes = _names(card, config)
        return model

    @classmethod
    def open(cls, card: Card, folder: Path) -> Dino:
        """A folder with config.json, the backbone's weights and its head: in the same file as `classifier`, or in
        linear_head.safetensors (or .pth) beside it, as `weight` and `bias`."""
        if not folder.is_dir():
            raise UserError(f"{folder} is one file: give the folder of the backbone, with its config.json and head.")
        weights = renamed(read_weights(folder))
        if "backbone.embeddings.cls_token" not in weights and "embeddings.cls_token" in weights:
            weights = {k if k.startswith("classifier.") else f"backbone.{k}": v for k, v in weights.items()}
        refuse_others(weights, "a DINO", ("backbone.embeddings.cls_token",))
        if "classifier.weight" not in weights:
            heads = [file for end in ("safetensors", "pth", "pt") for file in folder.glob(f"*linear_head*.{end}")]
            if len(heads) != 1:
                raise UserError(
                    f"{folder} has {len(heads) or 'no'} linear head{'s' * (len(heads) > 1)}, which turns features into "
                    "classes: put that of the checkpoint there as linear_head.safetensors (or .pth)."
                )
            weights |= {f"classifier.{k.rpartition('.')[2]}": v for k, v in read_weights(heads[0]).items()}
        config = {**read_config(folder), "classes": len(weights["classifier.bias"])}
        model = unfilled(cls.build, card, config, folder)
        load_into(model.net, weights)
        return model

    @classmethod
    def architecture(cls, card: Card) -> Config:
        return dict(card.architecture)

    def structure(self) -> Structure:
        return Structure((library.tower(self.net, f"backbone.{KINDS[self.config['model_type']][1]}", "vision"),))

    def encode(self, images: Tensor) -> Tensor:
        """(I, 3, H, W) -> (I, classes) logits."""
        logits: Tensor = self.net(images)
        return logits

    def logits(self, states: Any) -> Tensor:
        logits: Tensor = states
        return logits


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Today's names; DINOv2-g's one matrix of gate over up becomes two."""
    tensors: dict[str, Tensor] = {}
    for key, value in weights.items():
        for pattern, name in KEYS:
            key = re.sub(pattern, name, key)
        before, packed, after = key.partition("mlp.weights_in.")
        if packed:
            tensors[f"{before}mlp.gate_proj.{after}"], tensors[f"{before}mlp.up_proj.{after}"] = value.chunk(2)
        else:
            tensors[key] = value
    return tensors


def _names(card: Card, config: Config) -> list[str]:
    """`label_names` of the configuration, or its id2label. Without, a head of 1,000 classes is ImageNet-1k's."""
    count = int(config["classes"])
    names = config.get("label_names") or names_by_id(config, card.name, count)
    if names is None and count == 1000:
        names = ImageNetInfo().label_names()
    if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) and name for name in names):
        raise UserError(
            f"{card.name}: a head of {count} classes has no names: put them into config.json, in the head's order, as "
            '"label_names": ["...", ...].'
        )
    return names
