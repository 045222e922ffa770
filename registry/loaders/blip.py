"""load() opens this folder with transformers' BLIP, as narrow as it was cut. Needs torch, transformers, safetensors."""

import json
from pathlib import Path

import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.models.blip.modeling_blip import BlipAttention


class VisionAttention(BlipAttention):  # type: ignore[misc]
    def forward(self, hidden_states: Tensor, **_: object) -> tuple[Tensor, None]:  # the library's cannot be cut
        q, k, v = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        drop = self.dropout.p if self.training else 0.0
        out = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=drop, scale=self.scale)
        return self.projection(out.transpose(1, 2).flatten(2)), None


def load(folder: str | Path = Path(__file__).parent) -> nn.Module:
    config, stock = (json.loads(Path(folder, name).read_text()) for name in ("config.json", "stock.json"))
    net: nn.Module = getattr(transformers, stock["class"])(transformers.BlipConfig.from_dict(config))
    for path, gone in stock.get("dropped", {}).items():  # whole layers that were cut
        for number in sorted(gone, reverse=True):
            del net.get_submodule(path)[number]  # type: ignore[operator]
        for number, cut in enumerate(net.get_submodule(path).children()):
            for part in (part for part in cut.modules() if hasattr(part, "layer_idx")):
                vars(part)["layer_idx"] = number  # of its keys in a cache
    weights, parameters = load_file(Path(folder, "model.safetensors")), dict(net.named_parameters())
    if different := (weights.keys() ^ parameters.keys()) - {"temp"}:  # "temp" is of the training loss
        raise ValueError(f"{folder} has other weights than the model: {sorted(different)[:5]}")
    for name, parameter in parameters.items():
        parameter.data = weights[name]
    for layer in (layer for layer in net.modules() if isinstance(layer, nn.Linear)):
        layer.out_features, layer.in_features = layer.weight.shape
    for norm in (norm for norm in net.modules() if isinstance(norm, nn.LayerNorm)):
        norm.normalized_shape = tuple(norm.weight.shape)
    for name, (attributes, factor) in stock["attention"].items():
        vars(own := net.get_submodule(name)).update(attributes)
        if isinstance(own, BlipAttention):
            own.__class__ = VisionAttention
            continue
        for parameter in own.get_submodule("query").parameters():  # it divides by the root of the cut head's width
            parameter.data *= factor
        if name.endswith("crossattention.self"):  # the library loses the mask of padded keys on the way here
            mask = lambda _, x, k: (x, k | {"encoder_attention_mask": k["attention_mask"]})  # noqa: E731
            own.register_forward_pre_hook(mask, with_kwargs=True)
    return net.eval()
