"""Segmenter's checkpoints: rstrudel's (which UPop's are too) and mmsegmentation's -> our names and architecture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlbench.errors import UserError
from vlbench.images.folder import read_variant
from vlbench.tensors.reading import read_weights, refuse_others

Config = dict[str, Any]

TELLING = ("encoder.patch_embed.proj.weight", "decoder.cls_emb", "encoder.pos_embed")  # whose shapes are the sizes
FAMILY = "a Segmenter with a mask transformer"
HEAD = 64  # width of a head in every Segmenter of the paper
ORIGINAL: Config = {"norm_eps": 1e-5, "pos_embed": "bilinear"}
MMSEGMENTATION: Config = {"norm_eps": 1e-6, "pos_embed": "bicubic"}
# The encoder's classifier of ImageNet, which nothing here uses.
DROPPED = re.compile(r"^encoder\.head\.|^backbone\.head\.|^data_preprocessor\.")
MMSEG = (
    (r"^backbone\.patch_embed\.projection\.", "encoder.patch_embed.proj."),
    (r"^backbone\.ln1\.", "encoder.norm."),
    (r"^backbone\.", "encoder."),
    (r"^decode_head\.dec_proj\.", "decoder.proj_dec."),
    (r"^decode_head\.patch_proj\.weight$", "decoder.proj_patch"),
    (r"^decode_head\.classes_proj\.weight$", "decoder.proj_classes"),
    (r"^decode_head\.", "decoder."),
    (r"^(encoder|decoder)\.layers\.", r"\1.blocks."),
    (r"\.ln([12])\.", r".norm\1."),
    (r"\.attn\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.attn\.out_proj\.", ".attn.proj."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
)
TRANSPOSED = ("decoder.proj_patch", "decoder.proj_classes")  # Linears there, matrices that are multiplied by here


def read(source: Path) -> tuple[Config, dict[str, Tensor]]:
    """What a file (or rstrudel's folder, whose weights are checkpoint.pth) tells: the project's settings, and the
    tensors under our names."""
    file = source / "checkpoint.pth" if (source / "checkpoint.pth").is_file() else source
    tensors = read_weights(file)
    if not is_mmseg(tensors):
        return ORIGINAL, {k: v for k, v in tensors.items() if not DROPPED.search(k)}
    return MMSEGMENTATION, converted(tensors)


def is_mmseg(keys: Mapping[str, Tensor]) -> bool:
    """Whether these are keys of mmsegmentation."""
    return any(key.startswith("backbone.") for key in keys)


def converted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """mmsegmentation's tensors under our names. Its patch embedding has a bias or not, as its version has it."""
    renamed: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if DROPPED.search(key):
            continue
        for pattern, name in MMSEG:
            key = re.sub(pattern, name, key)
        renamed[key] = value.T.contiguous() if key in TRANSPOSED else value
    patches = "encoder.patch_embed.proj"
    if f"{patches}.weight" in renamed:
        renamed.setdefault(f"{patches}.bias", torch.zeros(len(renamed[f"{patches}.weight"])))
    return renamed


def inferred(tensors: Mapping[str, Tensor]) -> Config:
    """The architecture that a checkpoint tells by its shapes, however narrow its layers are cut."""
    refuse_others(tensors, FAMILY, TELLING)
    try:
        width, _, _, patch = tensors["encoder.patch_embed.proj.weight"].shape
        _, classes, decoder = tensors["decoder.cls_emb"].shape
        grid = round((tensors["encoder.pos_embed"].shape[1] - 1) ** 0.5)
    except ValueError as error:
        raise UserError(f"these are no weights of {FAMILY}: {error} in {', '.join(TELLING)}.") from None
    sizes = {"img_size": grid * patch, "patch_size": patch, "embed_dim": width}
    return {
        "classes": classes,
        "encoder": {**sizes, "depth": _layers(tensors, "encoder"), "num_heads": width // HEAD},
        "decoder": {"width": decoder, "depth": _layers(tensors, "decoder"), "heads": decoder // HEAD},
    }


def as_stated(config: Config, source: Path) -> Config:
    """The configuration with the heads that the variant.yml beside a checkpoint states, which no shape tells."""
    stated = read_variant(source if source.is_dir() else source.parent).get("net_kwargs")
    heads = stated.get("n_heads") if isinstance(stated, dict) else None
    if heads is None:
        return config
    width = config["encoder"]["embed_dim"]
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1 or width % heads:
        raise UserError(f"variant.yml: n_heads is {heads!r}, and should be a number that divides the width {width}.")
    return {**config, "encoder": {**config["encoder"], "num_heads": heads}}


def same_dims(one: Config, other: Config) -> bool:
    """Whether two architectures differ at most in what shapes do not tell (heads, settings)."""
    return _dims(one) == _dims(other)


def _dims(config: Config) -> list[int]:
    encoder, decoder = config["encoder"], config["decoder"]
    sizes = [encoder[k] for k in ("img_size", "patch_size", "embed_dim", "depth")]
    return [config["classes"], *sizes, decoder.get("width", encoder["embed_dim"]), decoder["depth"]]


def _layers(tensors: Mapping[str, Tensor], part: str) -> int:
    return len({key.split(".")[2] for key in tensors if key.startswith(f"{part}.blocks.")})
