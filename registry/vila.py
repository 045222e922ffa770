"""VILA 1.5 (Lin et al. 2024, arXiv 2312.07533): SigLIP, a projector that joins neighbouring patches, Llama or Qwen2.

A checkpoint is a folder of folders (llm/, vision_tower/, mm_projector/), each of a stock class. Image tokens come from
the vision block that `mm_vision_select_layer` names, and the embedding of a line break follows them. What reads an
image at several scales (S2) or in tiles is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, SiglipVisionConfig, SiglipVisionModel

from vlbench.errors import UserError
from vlbench.images.view import View
from vlbench.model import Card, family, read_config
from vlbench.nn.stock import Stock
from vlbench.tensors.reading import fill, read_weights

from ._chat import TURN, filled, processor_of
from ._projected import Projected
from ._prompted import Config, unfilled
from ._stream import ImageState
from ._tokenizer import read_tokenizer
from ._unread import refuse_unread

PARTS = {"llm": "language.", "vision_tower": "vision.", "mm_projector": "projector."}
# What config.json can say besides, and what is built of it here.
READ: dict[str, Sequence[Any]] = {
    "mm_vision_select_feature": ["cls_patch"], "mm_use_im_start_end": [False],
}  # fmt: skip
ENCODER = {"_target_": "llava.model.encoders.BasicImageEncoder", "end_tokens": "\n"}
TOWERS = ("siglip_vision_model", "siglip")
SCALES = ("s2", "dynamic_s2", "ps3")


class Joined(nn.Module):
    """(I, N, D) -> (I, N / side^2, D side^2): side x side patches become one, row by row. A grid that is not a multiple
    of `side` has zeros below and to the right."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        rows, side = round(x.shape[1] ** 0.5), self.side
        grid = F.pad(x.unflatten(1, (rows, rows)), (0, 0, 0, -rows % side, 0, -rows % side))
        grid = grid.unflatten(2, (-1, side)).unflatten(1, (-1, side))  # (I, h, side, w, side, D)
        merged: Tensor = grid.transpose(2, 3).flatten(3).flatten(1, 2)
        return merged


class Projector(nn.Module):
    """layers: as mm_projector/ numbers them."""

    def __init__(self, kind: str, wide: int, narrow: int) -> None:
        super().__init__()
        self.layers: nn.Module
        if kind == "linear":
            self.layers = nn.Linear(wide, narrow)
        elif kind == "mlp2x_gelu":
            self.layers = nn.Sequential(nn.Linear(wide, narrow), nn.GELU(), nn.Linear(narrow, narrow))
        elif kind in ("mlp_downsample", "mlp_downsample_2x2_fix"):
            first = (Joined(2), nn.LayerNorm(4 * wide), nn.Linear(4 * wide, narrow))
            self.layers = nn.Sequential(*first, nn.GELU(), nn.Linear(narrow, narrow))
        elif kind == "mlp_downsample_3x3_fix":
            first = (Joined(3), nn.LayerNorm(9 * wide), nn.Linear(9 * wide, 3 * wide))
            last = (nn.LayerNorm(3 * wide), nn.Linear(3 * wide, narrow), nn.GELU(), nn.Linear(narrow, narrow))
            self.layers = nn.Sequential(*first, nn.GELU(), *last)
        else:
            raise ValueError(f"mm_projector_type {kind!r} is not one that vlbench knows")

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.layers(x)
        return states


class Network(nn.Module):
    """vision: a SiglipVisionModel; projector; language: a model of transformers that writes."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.vision = SiglipVisionModel(SiglipVisionConfig(**{**config["vision_config"], "vision_use_head": False}))
        text = {**config["text_config"]}
        self.language = AutoModelForCausalLM.from_config(AutoConfig.for_model(text.pop("model_type"), **text))
        self.projector = Projector(config["projector"], self.vision.config.hidden_size, text["hidden_size"])

    def selected(self, pixels: Tensor, blocks: int) -> Tensor:
        """(I, 3, S, S) -> (I, N, D) after the first `blocks` blocks; the rest is not computed."""
        hidden: Tensor = self.vision.embeddings(pixels)
        for layer in self.vision.encoder.layers[:blocks]:
            hidden = layer(hidden, None)
        return hidden


@family("vila.json")
class Vila(Projected):
    """Its configuration is ours: vision_config, text_config, projector (its kind), layer, processor, prompts."""

    processor = "SiglipImageProcessor"
    mark = "<image>"
    vision = "vision.encoder.layers"
    decoder = "language.model"
    head = "language.lm_head"

    @classmethod
    def network(cls, config: Config) -> Any:
        return Network(config)

    @classmethod
    def build(cls, card: Card, config: Config, folder: Path) -> Vila:
        """The tokenizer of a checkpoint lies with its language model, that of a saved model beside its weights."""
        return super().build(card, config, folder / "llm" if (folder / "llm").is_dir() else folder)

    @classmethod
    def open(cls, card: Card, folder: Path) -> Vila:
        """A folder with config.json, llm/, vision_tower/ and mm_projector/. What its config.json has of `prompts` comes
        before the chat template of llm/."""
        stated = read_config(folder)
        _refuse_scales(stated)
        tensors: dict[str, Tensor] = {}
        for part, name in PARTS.items():
            if not (folder / part).is_dir():
                raise UserError(f"{folder} has no folder {part}: put that of the checkpoint there.")
            tensors |= {
                f"{name}{_plain(key)}": value for key, value in read_weights(folder / part, as_stored=True).items()
            }
        text, vision = read_config(folder / "llm"), read_config(folder / "vision_tower")
        _refuse_parts(text, vision)
        older = stated.get("llm_cfg")  # or the name of a folder
        config = {
            "text_config": {**(older if isinstance(older, dict) else {}), **text}, "vision_config": vision,
            "projector": read_config(folder / "mm_projector").get("mm_projector_type", ""),
            "layer": stated.get("mm_vision_select_layer", -2), "processor": processor_of(folder / "vision_tower"),
            "prompts": stated.get("prompts") or _chat(folder / "llm", int(text["vocab_size"])),
        }  # fmt: skip
        model = unfilled(cls.build, card, config, folder)
        depth = len(model.net.vision.encoder.layers)
        if not 0 < model.blocks <= depth:
            raise UserError(
                f"mm_vision_select_layer={config['layer']} is none of the {depth} blocks of this vision tower: give "
                "the config.json of the checkpoint."
            )
        state = model.net.state_dict()
        unused = [k for k in tensors if k not in state and re.search(rf"^vision\.head\.|{cls.dropped}", k)]
        fill(model.net, {k: v for k, v in tensors.items() if k not in unused})
        return model

    @property
    def blocks(self) -> int:
        """Vision blocks that are read."""
        layer, count = int(self.config["layer"]), len(self.net.vision.encoder.layers)
        return layer if layer >= 0 else count + 1 + layer

    def stock(self) -> Stock | None:  # type: ignore[override]
        return None

    def encode(self, images: Sequence[View]) -> list[ImageState]:
        """An image's tokens, and those of a line break after them."""
        projected = self.net.projector(self.net.selected(torch.cat([view.pixels for view in images]), self.blocks))
        line = self.language.embed(torch.tensor(self.words("\n"), dtype=torch.long, device=projected.device))
        return [ImageState(torch.cat([tokens, line.to(tokens)])) for tokens in projected]


def _plain(key: str) -> str:
    return key.removeprefix("vision_model.")


def _refuse_scales(stated: Config) -> None:
    """Raise UserError for checkpoints that read an image in another way than whole."""
    used = [name for name in SCALES if stated.get(name)]
    tower = stated.get("vision_tower_cfg")
    if used or (isinstance(tower, dict) and "s2" in str(tower.get("model_type", "")).lower()):
        raise UserError(
            f"this VILA reads images at several scales ({', '.join(used) or 'S2'}), which is not supported."
        )
    ratio = stated.get("image_aspect_ratio") or "resize"
    if ratio != "resize":
        raise UserError(f"this VILA prepares images by image_aspect_ratio={ratio}, and only resize is supported.")
    refuse_unread(stated, "VILA", READ)
    encoder = stated.get("image_encoder") or {}
    with suppress(ValueError):
        encoder = json.loads(encoder) if isinstance(encoder, str) else encoder
    if not isinstance(encoder, dict) or any(v is not None and ENCODER.get(k) != v for k, v in encoder.items()):
        raise UserError(f"this VILA encodes images by {encoder}, and only BasicImageEncoder as it comes is supported.")


def _refuse_parts(text: Config, vision: Config) -> None:
    """Raise UserError for a vision tower that is no SigLIP, and a context that the original stretches when it loads."""
    if vision.get("model_type") not in TOWERS:
        raise UserError(f"vision_tower/ holds a {vision.get('model_type')}, and vlbench reads VILA's SigLIP alone.")
    length, most = text.get("model_max_length"), text.get("max_position_embeddings")
    if isinstance(length, int) and isinstance(most, int) and length > most and not text.get("rope_scaling"):
        raise UserError(
            f"llm/config.json asks for {length} positions of a model of {most}, which VILA stretches when it loads: "
            "write its rope_scaling there."
        )


def _chat(folder: Path, vocabulary: int) -> dict[str, str]:
    """By the template of the language model's tokenizer. Raises UserError where it has none."""
    tokenizer = read_tokenizer(folder, vocabulary + 1)
    what = f"the chat template of the tokenizer in {folder}"
    if not isinstance(tokenizer.chat_template, str):
        raise UserError(
            f'{folder} has no chat template: write "prompts": {{"chat": "... {{}} ...", "image": "<image>"}} into '
            "config.json."
        )
    chat = filled([{"role": "user", "content": TURN}], tokenizer.chat_template, tokenizer, what)
    return {"chat": chat, "image": Vila.mark}
