"""DeiT and ViT on timm (Touvron et al. 2021, arXiv 2012.12877; Dosovitskiy et al. 2021, arXiv 2010.11929)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo
from timm.models import get_pretrained_cfg_value
from torch import Tensor

from vlbench.capability import Classifier
from vlbench.compression.shapes import fit_to, narrow
from vlbench.errors import UserError
from vlbench.model import Card, Model, family, read_config
from vlbench.nn import timm as adopted
from vlbench.nn.stock import Stock
from vlbench.nn.timm_names import plain_model, plain_name
from vlbench.structure import Structure
from vlbench.tensors.locate import locate
from vlbench.tensors.reading import load_into, read_weights

from ._labels import names_by_id


@family("deit.json")
class DeiT(Model, Classifier):
    """A timm VisionTransformer. encode gives the logits: nothing is left for a second stage."""

    @classmethod
    def build(cls, card: Card, config: dict[str, Any], folder: Path) -> DeiT:
        net: Any = plain_model(config["architecture"], _arguments(config))
        model = cls(card, config, adopted.adopt(net).eval())
        model.classes = _classes(config, card, net.num_classes)
        if config.get("widths"):
            narrow(model.net, model.structure(), config["widths"])
        return model

    @classmethod
    def open(cls, card: Card, folder: Path) -> DeiT:
        """A timm hub folder, or one file of weights with timm's keys for the card's architecture, whole or cut by UPop
        (whose softmax keeps the scale of the whole head, as ours does)."""
        if folder.is_dir():
            config = read_config(folder)
            if "architecture" not in config:  # another model's: load_into names the keys
                config = cls.architecture(card)
            model = cls.build(card, _sized(config, card), folder)
            load_into(model.net, read_weights(folder))
            return model
        model = cls.build(card, _sized(cls.architecture(card), card), folder)
        model.load(read_weights(folder))
        return model

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Load the weights of a checkpoint; the model takes their widths where they are cut."""
        widths = fit_to(self.net, self.structure(), tensors)
        if widths:
            self.config = {**self.config, "widths": {**self.config.get("widths", {}), **widths}}
        load_into(self.net, tensors)

    @classmethod
    def architecture(cls, card: Card) -> dict[str, Any]:
        """timm's name in a hub id timm/NAME.TAG."""
        if card.suite == "mini":
            return read_config(locate(card.checkpoint, card.revision, {}))
        return card.sized({"architecture": card.checkpoint.rsplit("/", 1)[-1].split(".", 1)[0]})

    def structure(self) -> Structure:
        return Structure((adopted.vision_tower(self.net),))

    def stock(self) -> Stock:
        return Stock.of({"attention": adopted.cut_attributes(self.net)}, Path(__file__).parent / "loaders" / "deit.py")

    def encode(self, images: Tensor) -> Tensor:
        """(I, 3, H, W) -> (I, classes) logits."""
        logits: Tensor = self.net(images)
        return logits

    def logits(self, states: Any) -> Tensor:
        logits: Tensor = states
        return logits


def _sized(config: dict[str, Any], card: Card) -> dict[str, Any]:
    """The configuration for images of the card's size, where the architecture's own size is another (a folder whose
    pretrained_cfg says 384 of a ViT that is named for 224)."""
    arguments = _arguments(config)
    default = get_pretrained_cfg_value(plain_name(config["architecture"]), "input_size")
    if not default or "img_size" in arguments or default[-1] == card.image.size:
        return config
    return {**config, "model_args": {**(config.get("model_args") or {}), "img_size": card.image.size}}


def _classes(config: dict[str, Any], card: Card, count: int) -> list[str]:
    """The names of the head's classes: the configuration's `label_names`, as timm writes them, or its `id2label`, as
    transformers does. A head without names is ImageNet-1k's where it has that many classes, and is refused where it has
    not."""
    pretrained = config.get("pretrained_cfg") or {}
    names = config.get("label_names") or (pretrained.get("label_names") if isinstance(pretrained, dict) else None)
    if names is None:
        names = names_by_id(config, card.name, count)
    if names is None:
        imagenet: list[str] = ImageNetInfo().label_names()
        if count == len(imagenet):
            return imagenet
        raise UserError(
            f"{card.name}: a head of {count} classes has no names: put them into config.json, in the head's order, "
            'as "label_names": ["...", ...].'
        )
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{card.name}: label_names in config.json should be a list of texts, one a class.")
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise UserError(f"{card.name}: label_names in config.json has {', '.join(twice[:5])} more than once.")
    if len(names) != count:
        raise UserError(f"{card.name}: config.json has {len(names)} label_names, and a head of {count} classes.")
    return names


def _arguments(config: dict[str, Any]) -> dict[str, Any]:
    """What timm's hub format keeps beside the architecture."""
    arguments = config.get("model_args") or {}
    if not isinstance(arguments, dict):
        raise UserError("config.json: model_args should be an object of names and numbers.")
    arguments = dict(arguments)
    if config.get("num_classes") is not None:
        arguments["num_classes"] = config["num_classes"]
    return arguments
