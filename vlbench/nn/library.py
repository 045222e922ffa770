"""The attention classes of transformers 5 that can be cut with the library's own forward, as one table.

These classes view their heads as (..., heads, width) by attributes of their own and keep their softmax scale as a
number. After a cut their forward is right once the attributes say what is left, and once a rotary layer picks the
angles of the pairs that it kept. So a class is a row here, and no forward is written anew.

The same view makes a forgotten class silent: one that the table does not have would be cut without an error and compute
something else. Such a class is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..structure import AfterCut, Block, Mask, Rows, Site, Tower, attention_site, blocks_named, ffn_site
from .emptied import Emptied, empty
from .narrowed import Picking, Valued, cuttable, original
from .stock import CutAttributes
from .stream import with_stream

MASKS = (Mask("attention_mask"),)

_HEAD_NORM = "QK-norm runs over the width of the head, so a removed dimension changes the others"
_DEEP = "the language model reads its output by the block's number (DeepStack)"
_ALL_NORM = "QK-norm runs over all heads together, so a removed head or dimension changes the others"
_TOGETHER = "the library views values by the width of the queries, and the narrow unit of this layer removes both"


@dataclass(frozen=True)
class Row:
    """One class. query, key, value, output: names of its Linears; one name three times is a fused qkv.

    rotary: dimensions i and i + width/2 turn together, and the forward is given the angles as `position_embeddings`.
    width: the attribute by which it views a head's width (none: it divides). count: the attribute by which it views
    the number of heads (none: it divides). total: the attribute that holds their product. norm: names of a QK-norm over
    the head's width. norm_of_all: the same over all heads together.
    """

    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    output: str = "o_proj"
    rotary: bool = False
    width: str = "head_dim"
    count: str = ""
    total: str = ""
    norm: str = ""
    norm_of_all: str = ""


_DECODER = Row(rotary=True)
_NORMED = Row(rotary=True, norm="q_norm")
_ENCODER = Row(output="out_proj")
_PACKED = Row(query="qkv", key="qkv", value="qkv", output="proj", rotary=True, width="", count="num_heads")
# (module below transformers.models, class) -> how it is built.
TABLE: dict[tuple[str, str], Row] = {
    ("llama", "LlamaAttention"): _DECODER,
    ("mistral", "MistralAttention"): _DECODER,
    ("qwen2", "Qwen2Attention"): _DECODER,
    ("qwen2_vl", "Qwen2VLAttention"): _DECODER,
    ("qwen2_5_vl", "Qwen2_5_VLAttention"): _DECODER,
    ("gemma", "GemmaAttention"): _DECODER,
    ("gemma2", "Gemma2Attention"): _DECODER,
    ("qwen3", "Qwen3Attention"): _NORMED,
    ("qwen3_vl", "Qwen3VLTextAttention"): _NORMED,
    ("gemma3", "Gemma3Attention"): _NORMED,
    ("clip", "CLIPAttention"): _ENCODER,
    ("siglip", "SiglipAttention"): _ENCODER,
    ("idefics3", "Idefics3VisionAttention"): _ENCODER,
    ("smolvlm", "SmolVLMVisionAttention"): _ENCODER,
    ("dinov2", "Dinov2Attention"): Row(),
    ("dinov2_with_registers", "Dinov2WithRegistersAttention"): Row(),
    ("dinov3_vit", "DINOv3ViTAttention"): Row(rotary=True, count="num_heads"),
    ("internvl", "InternVLVisionAttention"): Row(
        output="projection_layer", count="num_heads", total="embed_dim", norm_of_all="q_norm"
    ),
    ("qwen2_vl", "VisionAttention"): _PACKED,
    ("qwen2_5_vl", "Qwen2_5_VLVisionAttention"): _PACKED,
    ("qwen3_vl", "Qwen3VLVisionAttention"): _PACKED,
}
# Names of a feed-forward layer's Linears: up (gated by a pruner), gate (through the activation) or none, down.
_FEED_FORWARD = (
    ("up_proj", "gate_proj", "down_proj"),
    ("fc1", None, "fc2"),
    ("linear_fc1", None, "linear_fc2"),
)
# What stands around the blocks, as the library names it.
_WRITERS = (
    *("embed_tokens", "patch_embed.proj", "pos_embed", "embeddings.patch_embedding", "embeddings.position_embedding"),
    *("embeddings.patch_embeddings", "embeddings.patch_embeddings.projection"),
)
_TABLES = tuple(
    f"embeddings.{part}"
    for part in ("class_embedding", "cls_token", "mask_token", "register_tokens", "position_embeddings")
)
_NORMS = ("norm", "pre_layrnorm", "post_layernorm", "layernorm", "layer_norm", "merger.ln_q", "merger.norm")
_READERS = ("merger.mlp.0", "merger.linear_fc1")
_ACTIVATIONS = ("act_fn", "activation_fn", "act", "activation")


def row_of(layer: nn.Module) -> Row | None:
    """The table's row of a layer, adopted or not. None where it has none."""
    cls = original(type(layer))
    library, _, rest = cls.__module__.partition(".models.")
    return TABLE.get((rest.split(".")[0], cls.__name__)) if library == "transformers" else None


def adopt(module: nn.Module) -> nn.Module:
    """Let every rotary attention of the table below `module` pick its angles, and every one with a QK-norm have fewer
    values; parameters and keys stay the library's, and so does the forward until values are cut."""
    layer: Any
    for layer in list(module.modules()):
        row = row_of(layer)
        if row is None or isinstance(layer, Picking | Valued):
            continue
        width = _sizes(layer, row)[2]
        device = layer.get_parameter(f"{row.query}.weight").device
        if row.rotary:
            layer.whole = width // 2
            layer.register_buffer("pairs", torch.arange(layer.whole, device=device), persistent=False)
        if normed(layer, row):
            layer.output = row.output
            layer.register_buffer("values", torch.arange(width, device=device), persistent=False)
        layer.__class__ = cuttable(type(layer), row.rotary, normed(layer, row))
    return module


def normed(layer: nn.Module, row: Row) -> str:
    """Why a QK-norm forbids narrower queries and keys; empty where the layer has none."""
    for name, reason in ((row.norm, _HEAD_NORM), (row.norm_of_all, _ALL_NORM)):
        if name and not isinstance(getattr(layer, name), nn.Identity):
            return reason
    return ""


def _sizes(layer: Any, row: Row) -> tuple[int, int, int]:
    """(query heads, key/value heads, width of a head) as the layer is now."""
    fused = row.query == row.value
    if isinstance(layer, Emptied):
        heads, kv_heads = layer.sizes
        query: Any = layer.get_submodule(row.query)  # type: ignore[attr-defined]
        return heads, kv_heads, query.weight.shape[0] // ((3 if fused else 1) * heads)
    rows = layer.get_submodule(row.query).weight.shape[0] // (3 if fused else 1)
    heads = getattr(layer, row.count) if row.count else rows // getattr(layer, row.width)
    width = rows // heads
    return heads, heads if fused else layer.get_submodule(row.key).weight.shape[0] // width, width


def tower(
    module: nn.Module,
    prefix: str,
    name: str,
    *,
    modality: str | None = None,
    blocks: int | None = None,
    read_by: Sequence[str] | None = None,
    written_by: Sequence[str] = (),
) -> Tower:
    """The first `blocks` blocks (all where it is left out) whose layers stand at `prefix`: an attention of the table
    and a feed-forward layer each. modality: the tower's name where it is left out. read_by, written_by: the Linears
    that take its states, and those that make tokens beside its embeddings; None: that is not said, and its residual
    stream cannot be narrowed. Raises UserError for a class that is not in the table."""
    adopted = []
    owner: Any = module.get_submodule(prefix.rpartition(".")[0])
    read = getattr(owner, "deepstack_visual_indexes", ())
    for index, path, block in blocks_named(module, prefix):
        at, kind = f"{name}.{index}", modality or name
        sites = (_attention(module, at, path, block, kind), _ffn(module, at, path, block, kind))
        adopted.append(Block(path, sites, _DEEP if index in read else "", masks=MASKS))
    root = _root(module, prefix)
    plain = Tower(name, tuple(adopted[:blocks]), _renumber(prefix.rpartition(".")[0]))
    if read_by is None:
        return plain
    return with_stream(
        module, plain, root=root.removesuffix("."), beyond=f"{root}merger", unread=adopted[len(plain.blocks) :],
        writes=[*(f"{root}{part}" for part in _WRITERS), *written_by], norms=[f"{root}{part}" for part in _NORMS],
        tables=[f"{root}{part}" for part in _TABLES], reads=[*(f"{root}{part}" for part in _READERS), *read_by],
        after_cut=_sizer(root),
    )  # fmt: skip


def _root(module: nn.Module, prefix: str) -> str:
    """Where the embeddings stand: beside the blocks, or one module further out; with a dot behind it."""
    root = prefix.rpartition(".")[0]
    if not any(hasattr(module.get_submodule(root), part) for part in ("embed_tokens", "embeddings", "patch_embed")):
        root = root.rpartition(".")[0]
    return f"{root}." if root else ""


def _sizer(root: str) -> AfterCut:
    """Qwen's towers view their patches, and groups of them, by widths of their own."""

    def size(module: nn.Module, kept: Tensor) -> None:
        for path, attributes in _sizes_of_stream(module, root).items():
            vars(module.get_submodule(path)).update(attributes)

    return size


def _sizes_of_stream(module: nn.Module, root: str) -> dict[str, dict[str, int]]:
    """Path -> the widths that the modules around the blocks at `root` know, as their weights say them."""
    sizes: dict[str, dict[str, int]] = {}
    owner: Any = module.get_submodule(root.removesuffix("."))
    patches: Any = getattr(owner, "patch_embed", None)
    if isinstance(getattr(patches, "embed_dim", None), int):
        sizes[f"{root}patch_embed"] = {"embed_dim": int(patches.proj.weight.shape[0])}
    merger: Any = getattr(owner, "merger", None)
    if isinstance(getattr(merger, "hidden_size", None), int):
        reader = merger.mlp[0] if hasattr(merger, "mlp") else merger.linear_fc1
        sizes[f"{root}merger"] = {"hidden_size": int(reader.weight.shape[1])}
    return sizes


def _renumber(path: str) -> AfterCut:
    """What follows from keeping some blocks of the module at `path`, where it knows blocks by number: those that attend
    to the whole image (Qwen2.5-VL), those whose output goes further (DeepStack), and the kinds of mask of each."""

    def renumber(module: nn.Module, kept: Tensor) -> None:
        owner: Any = module.get_submodule(path)
        number = {old: new for new, old in enumerate(kept.tolist())}
        for name in ("fullatt_block_indexes", "deepstack_visual_indexes"):
            if isinstance(numbers := getattr(owner, name, None), list):
                setattr(owner, name, [number[old] for old in numbers if old in number])
        if isinstance(kinds := getattr(getattr(owner, "config", None), "layer_types", None), list):
            owner.config = copy(owner.config)
            owner.config.layer_types = [kinds[old] for old in kept.tolist()]

    return renumber


def _attention(module: nn.Module, at: str, path: str, block: nn.Module, modality: str) -> Site:
    layers = [(name, layer) for name, layer in block.named_modules() if row_of(layer) is not None]
    if len(layers) != 1:
        classes = sorted({type(x).__name__ for _, x in block.named_modules() if "Attention" in type(x).__name__})
        raise UserError(
            f"{path} has the attention {' and '.join(classes) or type(block).__name__}, and vlbench knows no legal cut "
            f"of it: nn/library.py needs a row for that class ({type(block).__module__})."
        )
    name, layer = layers[0]
    row = row_of(layer)
    assert row is not None
    return _described(module, f"{at}.attention", f"{path}.{name}", layer, row, modality)


def _described(module: nn.Module, at: str, path: str, layer: Any, row: Row, modality: str) -> Site:
    heads, kv_heads, width = _sizes(layer, row)
    reason = normed(layer, row)
    refusals = dict.fromkeys(("dim", "rope pair"), reason) if reason else {"value dim": _TOGETHER}
    if reason == _ALL_NORM:
        refusals["head"] = reason
    fused = row.query == row.value
    q, k, v = (
        Rows(f"{path}.{part}", i * heads * width if fused else 0)
        for i, part in enumerate((row.query, row.key, row.value))
    )
    return attention_site(
        module, at, modality=modality, query=q, key=k, value=v, output=f"{path}.{row.output}", heads=heads,
        kv_heads=kv_heads, rope=row.rotary and not reason, refusals=refusals, after_cut=_width_keeper(path, row),
        set_heads=_head_keeper(path, row), set_values=_value_keeper(path, row) if reason else None,
    )  # fmt: skip


def _width_keeper(path: str, row: Row) -> AfterCut:
    """What follows from keeping some dimensions, or pairs, of every head."""

    def keep(module: nn.Module, kept: Tensor) -> None:
        layer: Any = module.get_submodule(path)
        _emptied(layer, row, kept)
        width = int(kept.numel()) * (2 if row.rotary else 1)
        if row.width:
            setattr(layer, row.width, width)
        if row.total:
            setattr(layer, row.total, getattr(layer, row.count) * width)
        if row.rotary:
            layer.pairs = layer.pairs[kept.to(layer.pairs.device)]

    return keep


def _value_keeper(path: str, row: Row) -> AfterCut:
    """What follows from keeping some dimensions of every head's values."""

    def keep(module: nn.Module, kept: Tensor) -> None:
        layer: Any = module.get_submodule(path)
        if not kept.numel():  # queries and keys are as they were, and nothing is left to weigh
            heads, kv_heads, _ = _sizes(layer, row)
            empty(layer, (heads, kv_heads), row.output, alone=False)
        layer.values = layer.values[kept.to(layer.values.device)]

    return keep


def _emptied(layer: Any, row: Row, kept: Tensor) -> None:
    """Of a layer that keeps no unit only the bias is left."""
    if not kept.numel() and not isinstance(layer, Emptied):
        fused = row.query == row.value
        heads = getattr(layer, row.count) if row.count else 1
        empty(layer, (heads or 1, heads or 1), row.output, alone=fused)


def _head_keeper(path: str, row: Row) -> AfterCut:
    """What follows from keeping some heads, or groups of query heads with their key/value head."""

    def keep(module: nn.Module, kept: Tensor) -> None:
        layer: Any = module.get_submodule(path)
        _emptied(layer, row, kept)
        if row.total:
            setattr(layer, row.total, int(kept.numel()) * getattr(layer, row.width))
        if row.count:
            setattr(layer, row.count, int(kept.numel()))

    return keep


def _ffn(module: nn.Module, at: str, path: str, block: nn.Module, modality: str) -> Site:
    for name, layer in block.named_modules():
        children = dict(layer.named_children())
        for up, gate, down in _FEED_FORWARD:
            act = next((getattr(layer, a) for a in _ACTIVATIONS if callable(getattr(layer, a, None))), None)
            if act is not None and {up, down, *([gate] if gate else [])} <= children.keys():
                return ffn_site(
                    module, f"{at}.ffn", modality=modality, up=f"{path}.{name}.{up}", down=f"{path}.{name}.{down}",
                    activation=act, gate=f"{path}.{name}.{gate}" if gate else None,
                )  # fmt: skip
    raise UserError(f"{path} ({type(block).__name__}) has no feed-forward layer that vlbench knows to cut.")


def cut_attributes(module: nn.Module) -> CutAttributes:
    """For the library's own classes. rotary: the indices into cos and sin of what a cut layer keeps, which the
    library's does not pick by itself. spread, picked: see `_of_values`; the library's expects all values."""
    by_path: CutAttributes = {}
    for path, layer in module.named_modules():
        if isinstance(numbers := getattr(layer, "fullatt_block_indexes", None), list):
            by_path[path] = {"fullatt_block_indexes": numbers}, 1.0
        if hasattr(layer, "patch_embed"):
            around = _sizes_of_stream(module, f"{path}." if path else "")
            by_path |= {name: (attributes, 1.0) for name, attributes in around.items()}
        row = row_of(layer)
        if row is None:
            continue
        names = [name for name in (row.width, row.count, row.total) if name]
        attributes: dict[str, Any] = {name: int(getattr(layer, name)) for name in names}
        if isinstance(layer, Picking) and len(layer.pairs) < layer.whole:
            pairs = layer.pairs.tolist()
            attributes["rotary"] = [*pairs, *(pair + layer.whole for pair in pairs)]
        by_path[path] = attributes, 1.0
        if isinstance(layer, Valued) and len(layer.values) < layer.head_dim:
            by_path |= _of_values(path, layer, row)
    return by_path


def _of_values(path: str, layer: Any, row: Row) -> CutAttributes:
    """What is left of the values of every head: where the rows of v stand among `whole`, and which columns o reads."""
    heads, kv_heads, width = _sizes(layer, row)
    rows, columns = (
        (torch.arange(count)[:, None] * width + layer.values.cpu()).flatten().tolist() for count in (kv_heads, heads)
    )
    return {
        f"{path}.{row.value}": ({"spread": rows, "whole": kv_heads * width}, 1.0),
        f"{path}.{row.output}": ({"picked": columns}, 1.0),
    }
