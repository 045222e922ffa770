"""Prismatic's own checkpoints: what their config.json names, what their tensors tell, and what neither says.

config.json: {"model": {"vision_backbone_id", "llm_backbone_id", "arch_specifier", "image_resize_strategy"}}.
checkpoints/latest-checkpoint.pt: {"model": {"projector": {...}, "llm_backbone": {...}}}, and of a finetuned vision side
"vision_backbone", too. A frozen one is not in it: timm brings it, and here it lies beside, as *featurizer.safetensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vlbench.errors import UserError
from vlbench.tensors.reading import read_weights

Config = dict[str, Any]
Tensors = dict[str, Tensor]
DINO, SIGLIP = "vit_large_patch14_reg4_dinov2", "vit_so400m_patch14_siglip_224"
CLIP = "vit_large_patch14_clip_336"
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
OPENAI = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
# First words of a vision_backbone_id -> its towers: name, timm's class of model, settings that the name does not say,
# normalisation, and timm's own weights.
TOWERS: dict[str, tuple[tuple[str, str, Config, Config, str], ...]] = {
    "dinosiglip": (
        ("dino_featurizer", DINO, {}, IMAGENET, f"{DINO}.lvd142m"),
        ("siglip_featurizer", SIGLIP, {}, HALF, "vit_so400m_patch14_siglip_224 or _384"),
    ),
    "clip": (("featurizer", CLIP, {"act_layer": "quick_gelu"}, OPENAI, "vit_large_patch14_clip_224 or _336.openai"),),
    "siglip": (("featurizer", SIGLIP, {}, HALF, "vit_so400m_patch14_siglip_224 or _384"),),
    "dinov2": (("featurizer", DINO, {}, IMAGENET, f"{DINO}.lvd142m"),),
}
VISION_HEADS = {1024: 16, 1152: 16}  # ViT-L, so400m
TEXT_HEADS = {4096: 32, 5120: 40}  # Llama-2 and Vicuna of 7B and 13B
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: {} ASSISTANT:"
)
PURE = "In: {}\nOut:"


def read(folder: Path, stated: Config) -> tuple[Config, Tensors]:
    """Our configuration and the tensors under our names. stated: config.json. Raises UserError where a part is missing,
    and where the heads of an unpublished size are stated nowhere."""
    model = stated.get("model", {})
    kind = str(model.get("vision_backbone_id", ""))
    towers = TOWERS.get(kind.split("-")[0])
    if towers is None:
        raise UserError(f"config.json names the vision backbone {kind!r}, and vlbench knows {', '.join(TOWERS)}.")
    if model.get("image_resize_strategy", "resize-naive") != "resize-naive":
        raise UserError(f"image_resize_strategy {model['image_resize_strategy']} is not supported: only resize-naive.")
    _refuse_unknown_prompt(str(model.get("llm_backbone_id", "")), stated)
    file = folder / "checkpoints" / "latest-checkpoint.pt"
    if not file.is_file():
        raise UserError(f"{folder} has no checkpoints/latest-checkpoint.pt: put the checkpoint's there.")
    tensors: Tensors = {}
    for key, value in read_weights(file).items():
        tensors[re.sub(r"^(?:llm_backbone\.llm|vision_backbone|projector\.projector)\.", _part, key)] = value
    for name, _, _, _, source in towers:
        beside = folder / f"{name}.safetensors"
        if beside.is_file() and not any(key.startswith(f"vision.{name}.") for key in tensors):
            tensors |= {f"vision.{name}.{key}": value for key, value in read_weights(beside).items()}
        if f"vision.{name}.patch_embed.proj.weight" not in tensors:
            raise UserError(
                f"{folder} has no weights of the vision tower {name}, which the checkpoint left frozen: put those of "
                f"timm's {source} there, as {beside.name}."
            )
    last = next((key for key in reversed(towers) if "siglip" in key[1] or "clip" in key[1]), towers[0])[0]
    by_table = last != towers[0][0] or "dino" not in towers[0][1]  # the table of a DINO is of another size
    size = _size(tensors, last, _named_size(kind)) if by_table else _named_size(kind)
    vision = [_tower(tensors, *tower[:4], size, stated.get("vision_config", {})) for tower in towers]
    config = {
        "vision": vision, "image_size": size, "projector": model.get("arch_specifier", ""),
        "text_config": _text(tensors, stated.get("text_config", {})),
        "prompts": {"chat": VICUNA if "vicuna" in str(model.get("llm_backbone_id")) else PURE, "image": "<image>"},
    }  # fmt: skip
    return {**config, "prompts": {**config["prompts"], **stated.get("prompts", {})}}, tensors


def _refuse_unknown_prompt(language: str, stated: Config) -> None:
    if not stated.get("prompts") and any(word in language for word in ("chat", "instruct", "phi")):
        raise UserError(
            f"the prompt of {language} is not known here: write it into config.json, as "
            '"prompts": {"chat": "... {} ..."}.'
        )


def _part(match: re.Match[str]) -> str:
    return {"llm_backbone.llm.": "language.", "vision_backbone.": "vision."}.get(match[0], "projector.")


def _size(tensors: Mapping[str, Tensor], name: str, named: int) -> int:
    """Pixels, by the position table: of SigLIP without, of CLIP with a class token. named: by the backbone's name,
    which has the word where it is as many patches: 384 pixels are 27 of 14, with 6 pixels that none sees."""
    patch = int(tensors[f"vision.{name}.patch_embed.proj.weight"].shape[-1])
    side = int(tensors[f"vision.{name}.pos_embed"].shape[1] ** 0.5)
    return named if named // patch == side else side * patch


def _named_size(kind: str) -> int:
    return int((re.findall(r"-(\d+)px$", kind) or ["224"])[0])


def _tower(
    tensors: Mapping[str, Tensor], name: str, model: str, more: Config, norm: Config, size: int, stated: Config
) -> Config:
    start = f"vision.{name}."
    width = int(tensors[f"{start}patch_embed.proj.weight"].shape[0])
    heads = stated.get("num_heads", VISION_HEADS.get(width))
    if heads is None:
        raise UserError(
            f"the vision tower {name} is {width} wide, and nothing says how many heads it has: write "
            '"vision_config": {"num_heads": N} into config.json.'
        )
    depth = len({key.split(".")[3] for key in tensors if key.startswith(f"{start}blocks.")})
    hidden = int(tensors[f"{start}blocks.0.mlp.fc1.weight"].shape[0])
    sizes = {"img_size": size, "embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": hidden / width}
    return {"name": name, "model": model, "args": {**sizes, **more}, **norm}


def _text(tensors: Mapping[str, Tensor], stated: Config) -> Config:
    vocabulary, width = tensors["language.model.embed_tokens.weight"].shape
    heads = stated.get("num_attention_heads", TEXT_HEADS.get(width))
    if heads is None:
        raise UserError(
            f"the language model is {width} wide, and nothing says how many heads it has: write "
            '"text_config": {"num_attention_heads": N} into config.json.'
        )
    layers = len({key.split(".")[3] for key in tensors if key.startswith("language.model.layers.")})
    groups = int(tensors["language.model.layers.0.self_attn.k_proj.weight"].shape[0]) * heads // width
    return {
        "vocab_size": vocabulary, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": groups, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "eos_token_id": 2,
        "intermediate_size": int(tensors["language.model.layers.0.mlp.up_proj.weight"].shape[0]),
        "tie_word_embeddings": False, **stated,
    }  # fmt: skip
