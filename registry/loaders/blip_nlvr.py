"""load() opens this folder as the BlipNlvr of network.py, as narrow as it was cut. Needs torch, transformers,
safetensors. model(left, right, ids, mask): images (B, 3, H, W), tokens and mask (B, L) -> (B, 2) logits: false, true.
"""

import json
from pathlib import Path
from runpy import run_path
from typing import Any

import transformers
from safetensors.torch import load_file
from torch import nn


def load(folder: str | Path = Path(__file__).parent) -> nn.Module:
    """The model in eval mode. Raises ValueError where weights and configuration are not of one model."""
    config, stock = (json.loads(Path(folder, name).read_text()) for name in ("config.json", "stock.json"))
    build = run_path(str(Path(folder, "network.py")))["BlipNlvr"]
    net: nn.Module = build(transformers.BlipConfig.from_dict(config), config.get("merge_from", 6))
    for path, gone in stock.get("dropped", {}).items():  # whole layers that were cut
        for number in sorted(gone, reverse=True):
            del net.get_submodule(path)[number]  # type: ignore[operator]
    weights, parameters = load_file(Path(folder, "model.safetensors")), dict(net.named_parameters())
    if different := weights.keys() ^ parameters.keys():
        raise ValueError(f"{folder} has other weights than the model: {sorted(different)[:5]}")
    for name, parameter in parameters.items():
        parameter.data = weights[name]
    for layer in (layer for layer in net.modules() if isinstance(layer, nn.Linear)):
        layer.out_features, layer.in_features = layer.weight.shape
    for norm in (norm for norm in net.modules() if isinstance(norm, nn.LayerNorm)):
        norm.normalized_shape = tuple(norm.weight.shape)
    for name, (attributes, factor) in stock["attention"].items():
        module: Any = net.get_submodule(name)
        vars(module).update(attributes)
        for parameter in module.query.parameters() if hasattr(module, "query") else ():
            parameter.data *= factor  # transformers divides by the root of the cut head's width: this undoes it
    return net.eval()
