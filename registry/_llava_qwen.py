"""The original LLaVA-OneVision layout (model_type llava_qwen) -> transformers' configuration and names.

config.json of that layout does not describe the vision tower: its sizes are read off the weights, and what they do not
tell is SigLIP so400m's. The original builds that tower without its last block, which the file lacks therefore, and
reads the last one that is left, whatever `mm_vision_select_layer` says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vlbench.errors import UserError

from ._chat import refuse_many_tiles
from ._unread import refuse_unread

Config = dict[str, Any]
KEYS = (
    (r"^model\.vision_tower\.vision_tower\.vision_model\.", "model.vision_tower."),
    (r"^model\.mm_projector\.0\.", "model.multi_modal_projector.linear_1."),
    (r"^model\.mm_projector\.2\.", "model.multi_modal_projector.linear_2."),
    (r"^model\.(?=layers\.|embed_tokens\.|norm\.)", "model.language_model."),
)
TEXT = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "hidden_act", "tie_word_embeddings"),
    *("bos_token_id", "eos_token_id"),
)
# What the original can be told, and what is built of it here. Of videos it has more, which no image meets.
READ: dict[str, Sequence[Any]] = {
    "mm_patch_merge_type": ["spatial_unpad"], "mm_projector_type": ["mlp2x_gelu"], "mm_resampler_type": [],
    "mm_use_im_start_end": [False], "use_sliding_window": [False],
}  # fmt: skip
SO400M = {"hidden_size": 1152, "num_attention_heads": 16}
SO400M_WHOLE = 27  # blocks
TOWER = "model.vision_tower."
EMBEDDINGS = f"{TOWER}embeddings."


def configured(config: Config, weights: Mapping[str, Tensor]) -> Config:
    """The configuration of LlavaOnevisionForConditionalGeneration. weights: under today's names. Raises UserError where
    the vision tower is not in them, or its heads are told nowhere."""
    if f"{EMBEDDINGS}patch_embedding.weight" not in weights:
        name = config.get("mm_vision_tower", "google/siglip-so400m-patch14-384")
        raise UserError(
            f"these weights have no vision tower (it was left as it came): add the tensors of {name} as "
            "model.vision_tower.vision_tower.vision_model.* in a *.safetensors file of the folder, but for those of "
            "its last block and its head."
        )
    refuse_unread(config, "checkpoint", READ)
    pixels = int((re.findall(r"-(\d+)$", str(config.get("mm_vision_tower", ""))) or ["384"])[0])
    grid = grid_of(config.get("image_grid_pinpoints"), pixels)
    text = {k: config[k] for k in TEXT if config.get(k) is not None}
    rope = _rope(config)
    tied = bool(config.get("tie_word_embeddings", False))
    return {
        "model_type": "llava_onevision", "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": _aspect(config), "image_grid_pinpoints": grid,
        "projector_hidden_act": "gelu", "tie_word_embeddings": tied,
        "text_config": {**text, "model_type": "qwen2", "rope_parameters": rope, "tie_word_embeddings": tied},
        "vision_config": vision_of(weights, pixels, config.get("vision_config", {})),
        "processor": {
            "image_processor_type": "LlavaOnevisionImageProcessor", "size": {"height": pixels, "width": pixels},
            "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "image_grid_pinpoints": grid,
        },
        "hardness": config.get("alpha", 9.0), "logit_scale": config.get("logit_scale", 50.0),
    }  # fmt: skip


def _rope(config: Config) -> Config:
    """Rotary positions by either spelling: rope_theta and rope_scaling, or transformers 5's rope_parameters."""
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta") or 1e4}
    rope = {"rope_type": "default", **rope, **(config.get("rope_scaling") or {})}
    rope["rope_type"] = rope.pop("type", rope["rope_type"])
    refuse_unread(rope, "checkpoint", {"rope_type": ["default"]})
    return rope


def _aspect(config: Config) -> str:
    aspect = str(config.get("image_aspect_ratio") or "anyres_max_9")
    if not re.fullmatch(r"anyres_max_\d+", aspect):
        raise UserError(f"config.json has image_aspect_ratio={aspect}, and vlbench reads tiles alone, as anyres_max_9.")
    return aspect


def vision_of(weights: Mapping[str, Tensor], pixels: int, stated: Config) -> Config:
    """Sizes of the SigLIP in the weights. stated: `vision_config` of the folder, which has the last word."""
    width, _, patch, _ = weights[f"{EMBEDDINGS}patch_embedding.weight"].shape
    layers = {key.split(".")[4] for key in weights if key.startswith(f"{TOWER}encoder.layers.")}
    if width == SO400M["hidden_size"] and len(layers) == SO400M_WHOLE:
        raise UserError(
            "the vision tower of these weights is a whole SigLIP so400m, of which LLaVA-OneVision never had the last "
            f"block: take away the tensors of encoder.layers.{SO400M_WHOLE - 1} and of head."
        )
    heads = stated.get("num_attention_heads", SO400M["num_attention_heads"] if width == SO400M["hidden_size"] else None)
    if heads is None:
        raise UserError(
            f"the vision tower of these weights is {width} wide, and nothing says how many heads it has: write "
            '"vision_config": {"num_attention_heads": N} into config.json.'
        )
    return {
        "model_type": "siglip_vision_model", "hidden_size": width, "patch_size": patch, "image_size": pixels,
        "num_hidden_layers": len(layers), "num_attention_heads": heads, "vision_use_head": False,
        "intermediate_size": weights[f"{TOWER}encoder.layers.0.mlp.fc1.weight"].shape[0], **stated,
    }  # fmt: skip


def grid_of(pinpoints: Any, pixels: int) -> list[list[int]]:
    """ "(1x1),...,(2x2)" or a list of (width, height) pairs -> (height, width) pairs, as transformers wants them."""
    if isinstance(pinpoints, list):
        return [[int(height), int(width)] for width, height in pinpoints]
    corners = re.fullmatch(r"\((\d+)x(\d+)\),\.\.\.,\((\d+)x(\d+)\)", str(pinpoints))
    if corners is None:
        raise UserError(
            f"config.json should name the shapes of tiled images in image_grid_pinpoints, not {pinpoints!r}."
        )
    first_w, first_h, last_w, last_h = map(int, corners.groups())
    refuse_many_tiles((last_w - first_w + 1) * (last_h - first_h + 1), "image_grid_pinpoints")
    return [[h * pixels, w * pixels] for w in range(first_w, last_w + 1) for h in range(first_h, last_h + 1)]
