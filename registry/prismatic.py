"""Prismatic VLMs (Karamcheti et al. 2024, arXiv 2402.07865): one or two vision towers of timm, an MLP and Llama-2.

    [BOS, image, words]: tokens are those after the last block but one of each tower, side by side, through the MLP

The last block of each tower and the norm after it are never read. They are not computed, and not in the prunable set.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from vlbench.errors import UserError
from vlbench.images.pipeline import preprocess
from vlbench.images.spec import ImageSpec
from vlbench.images.view import View
from vlbench.model import Card, family, read_config
from vlbench.nn import library
from vlbench.nn import timm as timm_nn
from vlbench.nn.stock import Stock
from vlbench.nn.timm_names import plain_model
from vlbench.structure import Structure
from vlbench.tensors.reading import load_into

from ._prismatic import read
from ._projected import Projected
from ._prompted import Config, constructed, unfilled
from ._stream import ImageState
from ._tokenizer import read_tokenizer


class Network(nn.Module):
    """vision: timm's models by name; projector; language: a LlamaForCausalLM."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.vision = nn.ModuleDict(
            {t["name"]: plain_model(t["model"], {"num_classes": 0, **t["args"]}) for t in config["vision"]}
        )
        self.language = LlamaForCausalLM(LlamaConfig(**config["text_config"]))
        wide = sum(int(t["args"]["embed_dim"]) for t in config["vision"])
        self.projector = projector(config["projector"], wide, int(config["text_config"]["hidden_size"]))

    def patches(self, pixels: Tensor) -> Tensor:
        """(I, towers, 3, S, S), each tower's own normalisation -> (I, N, D of all towers)."""
        patches = []
        for number, tower in enumerate(self.vision.values()):
            patches += tower.forward_intermediates(  # type: ignore[operator]
                pixels[:, number], indices=[len(tower.blocks) - 2], stop_early=True,  # type: ignore[arg-type]
                output_fmt="NLC", intermediates_only=True,
            )  # fmt: skip
        return torch.cat(patches, -1)


def projector(kind: str, wide: int, narrow: int) -> nn.Sequential:
    """kind: the checkpoint's arch_specifier. Raises ValueError for one that Prismatic has not."""
    if kind.endswith("fused-gelu-mlp"):
        widths = [wide, 4 * wide, narrow, narrow]
    elif kind.endswith("gelu-mlp"):
        widths = [wide, narrow, narrow]
    elif kind.endswith("linear"):
        widths = [wide, narrow]
    else:
        raise ValueError(f"arch_specifier {kind!r} is none of linear, gelu-mlp and fused-gelu-mlp")
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.GELU()]
    return nn.Sequential(*layers[:-1])


@family("prismatic.json")
class Prismatic(Projected):
    """Its configuration is ours (see _prismatic.read). A prompt is the tokenizer's words, the image after the first."""

    mark = "<image>"
    several: ClassVar[bool] = False
    vision = "vision"
    decoder = "language.model"
    head = "language.lm_head"

    @classmethod
    def network(cls, config: Config) -> Any:
        return Network(config)

    @classmethod
    def build(cls, card: Card, config: Config, folder: Path) -> Prismatic:
        net = constructed(card, cls.network, config).eval()
        model = cls(card, config, library.adopt(timm_nn.adopt(net)))
        model.tokenizer = read_tokenizer(folder, int(config["text_config"]["vocab_size"]))
        return model

    @classmethod
    def open(cls, card: Card, folder: Path) -> Prismatic:
        """A folder of the original project, with timm's weights of the towers that were left frozen, and the tokenizer
        of its language model. What config.json has of text_config, vision_config and prompts comes first."""
        if not folder.is_dir():
            raise UserError(f"{folder} is one file: give the folder of a Prismatic checkpoint, with its config.json.")
        config, weights = read(folder, read_config(folder))
        model = unfilled(cls.build, card, config, folder)
        state = model.net.state_dict()
        for key in [k for k in weights if k.endswith(".pos_embed") and state[k].shape != weights[k].shape]:
            patch = state[key.replace("pos_embed", "patch_embed.proj.weight")].shape[-1]
            side = int(config["image_size"]) // int(patch)
            weights[key] = resample_abs_pos_embed(weights[key], [side, side], num_prefix_tokens=0)
        load_into(model.net, weights)
        return model

    def structure(self) -> Structure:
        """The vision towers, all of their blocks but the last, and the language model."""
        towers = [
            timm_nn.vision_tower(
                self.net,
                f"vision.{name}.blocks",
                name.removesuffix("_featurizer"),
                len(tower.blocks) - 1,
                read_by=None,  # the projector takes the states of several towers side by side
            )
            for name, tower in self.net.vision.items()
        ]
        return Structure((*towers, library.tower(self.net, f"{self.decoder}.layers", "language")))

    def stock(self) -> Stock | None:  # type: ignore[override]
        return None

    def views(self, image: Tensor) -> View:
        """The image squashed, once for each tower."""
        square = preprocess(image, ImageSpec(size=int(self.config["image_size"])))
        towers = self.config["vision"]
        mean, std = (torch.tensor([t[k] for t in towers], device="cpu").view(-1, 3, 1, 1) for k in ("mean", "std"))
        return View(square.expand(len(towers), -1, -1, -1), mean, std)

    def encode(self, images: Sequence[View]) -> list[ImageState]:
        projected = self.net.projector(self.net.patches(torch.stack([view.pixels for view in images])))
        return [ImageState(tokens) for tokens in projected]

    def turn(self, text: str, images: int) -> str:
        """The image's mark stands before the conversation."""
        prompts = self.config["prompts"]
        return f"{prompts['image'] * images}{prompts['chat'].replace('{}', text)}"

    def _divided(self, prompt: str) -> list[list[int]]:
        words = prompt.removeprefix(self.config["prompts"]["image"])
        ids: list[int] = self.tokenizer(words).input_ids
        if (
            len(ids) > 1 and ids[-1] == self.tokenizer.sep_token_id
        ):  # of BERT's tokenizer, where a model is only counted
            ids = ids[:-1]
        return [ids] if words == prompt else [ids[:1], ids[1:]]
