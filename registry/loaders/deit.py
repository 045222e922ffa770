"""load() opens this folder as timm's VisionTransformer, as narrow as it was cut. Needs torch, timm and safetensors.

model(images): (B, 3, H, W), normalised -> (B, classes) logits.
"""

import json
import re
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import load_file
from torch import nn

# Anything else might name a file that timm unpickles, or a place on the network.
ALLOWED = {
    *("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio"),
    *("init_values", "reg_tokens", "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate"),
    *("attn_drop_rate", "drop_path_rate", "qkv_bias", "qk_norm", "scale_attn_norm", "scale_mlp_norm", "proj_bias"),
    *("class_token", "no_embed_class", "pre_norm", "final_norm", "fc_norm", "dynamic_img_size", "dynamic_img_pad"),
    *("global_pool", "pos_embed", "weight_init", "act_layer", "norm_layer"),
}


def load(folder: str | Path = Path(__file__).parent) -> nn.Module:
    """The model in eval mode. Raises ValueError where weights and configuration are not of one model."""
    config, stock = (json.loads(Path(folder, name).read_text()) for name in ("config.json", "stock.json"))
    arguments = {"num_classes": config.get("num_classes"), **(config.get("model_args") or {})}
    if not re.fullmatch(r"[A-Za-z0-9_]+", config["architecture"]) or arguments.keys() - ALLOWED:
        raise ValueError(f"{folder}: config.json asks timm to read other files than this folder's")
    net: nn.Module = timm.create_model(config["architecture"], **{k: v for k, v in arguments.items() if v is not None})
    for path, gone in stock.get("dropped", {}).items():  # whole layers that were cut
        for number in sorted(gone, reverse=True):
            del net.get_submodule(path)[number]  # type: ignore[operator]
    weights, parameters = load_file(Path(folder, "model.safetensors")), dict(net.named_parameters())
    if different := weights.keys() ^ parameters.keys():
        raise ValueError(f"{folder} has other weights than the model: {sorted(different)[:5]}")
    for name, parameter in parameters.items():
        parameter.data = weights[name]
    layer: Any
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = layer.weight.shape
        elif isinstance(layer, nn.LayerNorm):
            layer.normalized_shape = tuple(layer.weight.shape)
    for name, (attributes, factor) in stock["attention"].items():
        layer = net.get_submodule(name)
        vars(layer).update(attributes)
        for parameter in layer.qkv.parameters():  # timm divides by the root of the cut head's width: this undoes it
            parameter.data[: layer.attn_dim] *= factor
    return net.eval()
