"""load() opens this folder as open_clip's CLIP, as narrow as it was cut. Needs torch, open_clip and safetensors."""

import json
from pathlib import Path
from typing import Any

import open_clip
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class Attention(nn.Module):
    """torch's nn.MultiheadAttention cannot be cut: this is what takes its place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, *_: Any, attn_mask: Tensor | None = None, **__: Any) -> tuple[Tensor, None]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = scaled_dot_product_attention(q, k, v, attn_mask, scale=self.scale)  # type: ignore[arg-type]
        return self.out_proj(out.transpose(1, 2).flatten(2)), None


def load(folder: str | Path = Path(__file__).parent) -> nn.Module:
    """The model in eval mode. Raises ValueError where weights and configuration are not of one model."""
    config, stock = (json.loads(Path(folder, name).read_text()) for name in ("config.json", "stock.json"))
    net: nn.Module = open_clip.CLIP(**{k: v for k, v in config.items() if k not in ("widths", "softmax_scale")})
    for path, gone in stock.get("dropped", {}).items():  # whole layers that were cut
        for number in sorted(gone, reverse=True):
            del net.get_submodule(path)[number]  # type: ignore[operator]
    for name, (attributes, _) in stock["attention"].items():
        net.set_submodule(name, Attention(net.get_parameter(f"{name}.out_proj.weight").shape[0]))
        vars(net.get_submodule(name)).update(attributes)
    weights, parameters = load_file(Path(folder, "model.safetensors")), dict(net.named_parameters())
    if different := weights.keys() ^ parameters.keys():
        raise ValueError(f"{folder} has other weights than the model: {sorted(different)[:5]}")
    for name, parameter in parameters.items():
        parameter.data = weights[name]
    for layer in (layer for layer in net.modules() if isinstance(layer, nn.Linear)):
        layer.out_features, layer.in_features = layer.weight.shape
    for norm in (norm for norm in net.modules() if isinstance(norm, nn.LayerNorm)):
        norm.normalized_shape = tuple(norm.weight.shape)
    return net.eval()
