"""The vision tower of transformers' CLIP, of which LLaVA reads a layer before the last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPAttention as LibraryAttention

from ..errors import UserError
from ..structure import Block, Mask, Rows, Tower, attention_site, blocks_named, count_setter, ffn_site
from .attend import attend, merge_heads, split_heads
from .stock import CutAttributes
from .stream import with_stream

MASKS = (Mask("attention_mask"),)


class CLIPAttention(LibraryAttention):  # type: ignore[misc]
    """CLIPAttention through attend(): any kept width, the original scale."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any) -> tuple[Tensor, None]:
        q, k, v = (split_heads(p(hidden_states), self.num_heads) for p in (self.q_proj, self.k_proj, self.v_proj))
        dropout = self.dropout if self.training else 0.0
        out = attend(q, k, v, scale=self.scale, mask=attention_mask, dropout=dropout)
        return self.out_proj(merge_heads(out)), None


def adopt(module: nn.Module) -> nn.Module:
    """Give every CLIP attention below `module` our forward; parameters and keys stay the library's."""
    for layer in module.modules():
        if type(layer) is LibraryAttention:
            layer.__class__ = CLIPAttention
    return module


def cut_attributes(module: nn.Module) -> CutAttributes:
    """For the library's class, which stores its softmax scale."""
    attributes: CutAttributes = {}
    for path, layer in module.named_modules():
        if isinstance(layer, CLIPAttention):
            heads, rows = int(layer.num_heads), int(layer.q_proj.weight.shape[0])
            attributes[path] = {"num_heads": heads, "head_dim": rows // heads}, 1.0
    return attributes


def states_after(vision: Any, images: Tensor, blocks: int) -> Tensor:
    """(I, 1 + N, D) hidden states of a CLIPVisionModel after its first `blocks` blocks; the rest is not computed."""
    hidden: Tensor = vision.pre_layrnorm(vision.embeddings(images))
    for layer in vision.encoder.layers[:blocks]:
        hidden = layer(hidden, None)
    return hidden


def tower(
    module: nn.Module, prefix: str, blocks: int, name: str = "vision", read_by: Sequence[str] | None = None
) -> Tower:
    """The first `blocks` blocks of the encoder whose layers stand at `prefix`. read_by: the Linears that take its
    states; None: that is not said, and its residual stream cannot be narrowed."""
    adopted = []
    for index, path, layer in blocks_named(module, prefix):
        block: Any = layer
        if not isinstance(block.self_attn, LibraryAttention):
            raise UserError(
                f"{path} has {type(block.self_attn).__name__}, and nn/clip_vision.py describes CLIP's alone."
            )
        attn = f"{path}.self_attn"
        q, k, v = (Rows(f"{attn}.{part}_proj") for part in "qkv")
        sites = (
            attention_site(
                module, f"{name}.{index}.attention", modality="vision", query=q, key=k, value=v,
                output=f"{attn}.out_proj", heads=block.self_attn.num_heads, set_heads=count_setter(attn, "num_heads"),
            ),
            ffn_site(
                module, f"{name}.{index}.ffn", modality="vision", up=f"{path}.mlp.fc1", down=f"{path}.mlp.fc2",
                activation=block.mlp.activation_fn,
            ),
        )  # fmt: skip
        adopted.append(Block(path, sites, masks=MASKS))
    tower = Tower(name, tuple(adopted[:blocks]))
    if read_by is None:
        return tower
    at = prefix.removesuffix("encoder.layers")
    inside = f"{at}embeddings."
    return with_stream(
        module, tower, root=at.removesuffix("."), unread=adopted[blocks:], reads=read_by,
        writes=[f"{inside}patch_embedding", f"{inside}position_embedding"], tables=[f"{inside}class_embedding"],
        norms=[f"{at}pre_layrnorm", f"{at}post_layernorm"],
    )  # fmt: skip
