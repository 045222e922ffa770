"""timm's models by plain names and plain numbers.

timm.create_model takes far more than an architecture: checkpoint_path is unpickled, "hf-hub:" and "local-dir:" reach
the network or another folder, pretrained_cfg names files and URLs. A folder's configuration is a stranger's: of what
it says, only the arguments below go there, and only numbers, truth values and names of layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import timm
from torch import nn

from ..errors import UserError, did_you_mean

NUMBERS = (
    *("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio"),
    *("init_values", "reg_tokens", "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate"),
    *("attn_drop_rate", "drop_path_rate"),
)
TRUTHS = (
    *("qkv_bias", "qk_norm", "scale_attn_norm", "scale_mlp_norm", "proj_bias", "class_token", "no_embed_class"),
    *("pre_norm", "final_norm", "fc_norm", "dynamic_img_size", "dynamic_img_pad"),
)
LAYERS = ("global_pool", "pos_embed", "weight_init", "act_layer", "norm_layer")
LARGEST = 10**9  # a number beyond it is no size of a model; limits.py has the bounds of the machine


def plain_name(architecture: object) -> str:
    """An architecture of timm. Raises UserError where config.json names none, or something else than a name."""
    if not isinstance(architecture, str) or not re.fullmatch(r"[A-Za-z0-9_]+", architecture):
        raise UserError(
            f"config.json: the architecture {architecture!r} is no plain name of timm's: "
            "write one such as deit_small_patch16_224."
        )
    if not timm.is_model(architecture):
        raise UserError(f"config.json: timm has no architecture {architecture!r}: correct the name, or update timm.")
    return architecture


def plain_model(architecture: object, arguments: Mapping[str, Any]) -> nn.Module:
    """timm's model with random weights. Raises UserError where config.json names no architecture of timm, or has an
    argument that is not of the lists above."""
    architecture = plain_name(architecture)
    for name, value in arguments.items():
        _refuse(name, value)
    given = {name: value for name, value in arguments.items() if value is not None}
    try:
        net: nn.Module = timm.create_model(architecture, pretrained=False, **given)
    except (TypeError, ValueError, AssertionError, ZeroDivisionError, KeyError, RuntimeError, AttributeError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"config.json: timm cannot make {architecture} with model_args {given} ({why}): correct them."
        ) from None
    return net


def _refuse(name: str, value: object) -> None:
    names = (*NUMBERS, *TRUTHS, *LAYERS)
    if name not in names:
        raise UserError(f"config.json: model_args has {name!r}, which vlbench does not pass to timm. "
                        f"{did_you_mean(name, names)}")  # fmt: skip
    parts = value if isinstance(value, list) and name in ("img_size", "patch_size") and len(value) == 2 else [value]
    for part in parts:
        fine = part is None or (
            (isinstance(part, int | float) and not isinstance(part, bool) and 0 <= part <= LARGEST)
            if name in NUMBERS
            else isinstance(part, bool)
            if name in TRUTHS
            else isinstance(part, str) and re.fullmatch(r"[a-z0-9_]*", part) is not None
        )
        if not fine:
            kind = "a number" if name in NUMBERS else "true or false" if name in TRUTHS else "a plain name"
            raise UserError(f"config.json: model_args {name} is {value!r}, and should be {kind}.")
