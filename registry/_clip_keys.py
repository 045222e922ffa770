"""CLIP's checkpoints: open_clip's folders, and files with OpenAI's keys (UPop's too) -> our names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vlbench.disk.storage import read_json
from vlbench.errors import UserError
from vlbench.model import read_config
from vlbench.tensors.reading import read_weights, refuse_others

Config = dict[str, Any]

# Whose shapes are the sizes of the model.
TELLING = (
    "visual.conv1.weight", "visual.positional_embedding", "positional_embedding", "text_projection",
    "token_embedding.weight",
)  # fmt: skip
FAMILY = "a CLIP with a ViT"
HEAD = 64  # width of a head in every CLIP of OpenAI
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
# The momentum twin and the queues of UPop's training, and numbers that OpenAI keeps beside the weights.
DROPPED = re.compile(r"(^|\.)\w+_m(\.|$)|_queue$|^(input_resolution|context_length|vocab_size)$")
FUSED = re.compile(r"\.attn\.in_proj_(weight|bias)$")
# A file that does not say its activation, of which there are two for the same shapes.
ASKED = (
    "{source} does not say whether this CLIP has OpenAI's QuickGELU or the plain GELU, and scores fall by points with "
    "the wrong one: put open_clip_config.json beside it, the checkpoint's own or "
    "{{\"model_cfg\": {{\"quick_gelu\": true}}}} (OpenAI's, DFN's) or false (LAION's, DataComp's)."
)
KNOWN = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale", "init_logit_bias"}
OURS = {"widths", "softmax_scale"}  # what `CLIP.build` reads beside open_clip's keys


def read(source: Path) -> tuple[Config | None, dict[str, Tensor]]:
    """The configuration in a folder, or beside a file (None where there is none), and the weights as they are.

    Folders of timm on the hub hold the image encoder alone a second time (config.json, model.safetensors).
    """
    if not source.is_dir():
        beside = source.parent / CONFIG
        return _model_cfg(beside) if beside.is_file() else None, read_weights(source)
    config = None
    if (source / CONFIG).is_file():
        config = _model_cfg(source / CONFIG)
    elif (source / "config.json").is_file() and "text_cfg" in (stated := read_config(source)):
        config = stated
    weights = source / WEIGHTS
    return config, read_weights(weights if weights.is_file() else source)


def _model_cfg(file: Path) -> Config:
    content = read_json(file)
    model = content.get("model_cfg") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise UserError(f"{file} is no configuration of open_clip's: it has no object 'model_cfg'.")
    return model


def tells_activation(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a bare file is provably of OpenAI's weights, whose activation is QuickGELU: it has the numbers that
    OpenAI keeps beside them, what UPop's training of them adds, or layers that UPop has cut. LAION's CLIPs have the
    same shapes and GELU."""
    cut = any(
        (FUSED.search(key) and value.ndim == 2 and value.shape[0] != 3 * value.shape[1])
        or (key.endswith(".mlp.c_fc.weight") and value.shape[0] != 4 * value.shape[1])
        for key, value in tensors.items()
    )
    return cut or any(DROPPED.search(key) for key in tensors)


def is_original(keys: Mapping[str, Tensor]) -> bool:
    """Whether these are keys of OpenAI, open_clip or UPop, and not ours."""
    return any(FUSED.search(key) for key in keys)


def converted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of inference, with the names of the adopted model; values are not changed."""
    return {FUSED.sub(r".attn.qkv.\1", k): v for k, v in tensors.items() if not DROPPED.search(k)}


def inferred(tensors: Mapping[str, Tensor]) -> Config:
    """The architecture that OpenAI's weights tell by their shapes, however narrow their layers are cut: heads are 64
    wide, hidden layers four times as wide as the residual stream, and the activation is QuickGELU."""
    refuse_others(tensors, FAMILY, TELLING)
    try:
        width, _, _, patch = tensors["visual.conv1.weight"].shape
        grid = round((tensors["visual.positional_embedding"].shape[0] - 1) ** 0.5)
        context, text_width = tensors["positional_embedding"].shape
        vision = {"image_size": grid * patch, "width": width, "patch_size": patch, "head_width": HEAD}
        text = {"context_length": context, "width": text_width, "heads": text_width // HEAD}
        return {
            "embed_dim": tensors["text_projection"].shape[1],
            "quick_gelu": True,
            "vision_cfg": {**vision, "layers": _layers(tensors, "visual.transformer")},
            "text_cfg": {
                **text,
                "vocab_size": tensors["token_embedding.weight"].shape[0],
                "layers": _layers(tensors, "transformer"),
            },
        }
    except ValueError as error:
        raise UserError(f"these are no weights of {FAMILY}: {error} in {', '.join(TELLING)}.") from None


def _layers(tensors: Mapping[str, Tensor], prefix: str) -> int:
    blocks = f"{prefix}.resblocks."
    return len({key.removeprefix(blocks).split(".")[0] for key in tensors if key.startswith(blocks)})


def same_dims(one: Config, other: Config) -> bool:
    """Whether two configurations differ at most in what shapes do not tell (heads, activation, pooling)."""
    parts = (("vision_cfg", ("image_size", "width", "patch_size", "layers")),
             ("text_cfg", ("context_length", "width", "vocab_size", "layers")))  # fmt: skip
    inner = all(one[part].get(k) == other[part].get(k) for part, keys in parts for k in keys)
    return inner and one["embed_dim"] == other["embed_dim"]


def refuse_unknown(config: Config) -> None:
    """Raise UserError for CLIPs that are built of other parts than OpenAI's."""
    vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    strange = sorted(config.keys() - KNOWN - OURS)
    strange += [k for k in ("timm_model_name", "attentional_pool", "final_ln_after_pool") if vision.get(k)]
    strange += [k for k in ("hf_model_name", "embed_cls") if text.get(k)]
    if isinstance(vision.get("layers"), list) or vision.get("pool_type", "tok") != "tok":
        strange.append("vision_cfg")
    for part in (vision, text):
        strange += [k for k in ("block_type", "qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner",
                                "scale_attn", "scale_fc") if part.get(k)]  # fmt: skip
    if strange:
        raise UserError(f"this CLIP is built otherwise than OpenAI's ({', '.join(strange)}), which no card here reads.")
