"""load() opens this folder as the Segmenter of network.py, as narrow as it was cut. Needs torch, timm and safetensors.

model(images): (B, 3, S, S), normalised, S the side of a window -> (B, classes, S / patch, S / patch) logits.
"""

import json
from pathlib import Path
from runpy import run_path
from typing import Any

from safetensors.torch import load_file
from torch import nn


def load(folder: str | Path = Path(__file__).parent) -> nn.Module:
    """The model in eval mode. Raises ValueError where weights and configuration are not of one model."""
    config, stock = (json.loads(Path(folder, name).read_text()) for name in ("config.json", "stock.json"))
    net: nn.Module = run_path(str(Path(folder, "network.py")))["Segmenter"](config)
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
