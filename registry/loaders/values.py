"""load() opens this folder with transformers, as narrow as it was cut, with fewer values in a head than queries. Needs
torch, transformers and safetensors."""

import json
from copy import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn


def turned(self: Any, args: Any, words: Any) -> Any:  # every layer keeps rotary pairs of its own
    return args, words | {"position_embeddings": [a[..., self.rotary] for a in words["position_embeddings"]]}


def spread(self: Any, args: Any, rows: Tensor) -> Tensor:  # values that are gone are zeros to the library
    whole = rows.new_zeros(*rows.shape[:-1], self.whole)
    return whole.index_copy(-1, torch.tensor(self.spread, device=rows.device), rows)


def picked(self: Any, args: Any) -> Any:
    return (args[0][..., self.picked],)


def drop(layers: Any, owner: Any, gone: list[int]) -> None:  # whole layers that were cut
    for number in sorted(gone, reverse=True):
        del layers[number]
    for number, layer in enumerate(layers):
        for part in (part for part in layer.modules() if hasattr(part, "layer_idx")):
            part.layer_idx = number  # of its keys in a cache
    owner.config = copy(owner.config)
    owner.config.num_hidden_layers = len(layers)


def load(folder: str | Path = Path(__file__).parent) -> nn.Module:
    config, stock = (json.loads(Path(folder, name).read_text()) for name in ("config.json", "stock.json"))
    net: nn.Module = getattr(transformers, stock["class"])(getattr(transformers, stock["config"]).from_dict(config))
    for path, gone in stock.get("dropped", {}).items():
        drop(net.get_submodule(path), net.get_submodule(path.rpartition(".")[0]), gone)
    weights = load_file(Path(folder, "model.safetensors"))
    for name in weights.keys() - dict(net.named_parameters()).keys():  # tied or without bias in the class
        setattr(net.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], nn.Parameter(weights[name]))
    if different := weights.keys() ^ dict(net.named_parameters()).keys():
        raise ValueError(f"{folder} has other weights than the model: {sorted(different)[:5]}")
    for name, parameter in net.named_parameters():
        parameter.data = weights[name]
    for layer in (layer for layer in net.modules() if isinstance(layer, nn.Linear)):
        layer.out_features, layer.in_features = layer.weight.shape
    for norm in (norm for norm in net.modules() if isinstance(norm, nn.LayerNorm)):
        norm.normalized_shape = tuple(norm.weight.shape)
    for name, (attributes, _) in stock["attention"].items():
        vars(own := net.get_submodule(name)).update(attributes)
        if "rotary" in attributes:
            own.register_forward_pre_hook(turned, with_kwargs=True)
        if "spread" in attributes:
            own.register_forward_hook(spread)
        if "picked" in attributes:
            own.register_forward_pre_hook(picked)
    return net.eval()
