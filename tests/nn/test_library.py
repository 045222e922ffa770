"""Oracle: the library's own forward on tiny random weights; a cut of every class of the table equals its gate."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    DynamicCache,
    Qwen3Config,
    Qwen3Model,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.nn import test_kinds as checks
from tests.nn.kinds import Kind, ready, tokens
from tests.nn.library_kinds import LIBRARY_KINDS
from vlbench.errors import UserError
from vlbench.nn import clip_vision, library, llama
from vlbench.nn import timm as timm_nn
from vlbench.nn.caches import with_cache
from vlbench.structure import Structure, check_structure

loader = importlib.import_module("vlbench.registry.loaders.values")
NAMES = {kind.name: kind for kind in LIBRARY_KINDS}
# One class of every different row: the other classes of a row are built alike.
ONE_OF_EACH = ("Qwen2Model", "Qwen3Model", "SiglipVisionModel", "DINOv3ViTModel", "InternVLVisionModel",
               "InternVLVisionModel6B", "Qwen2_5_VLVision")  # fmt: skip
NORMED = ("Qwen3Model", "Qwen3VLTextModel", "Gemma3TextModel", "InternVLVisionModel6B")
every_kind = pytest.mark.parametrize("kind", LIBRARY_KINDS, ids=NAMES)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """No grad: SDPA takes another kernel under it (1e-6 apart). One thread: tiny tensors, shared cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


def test_every_row_is_a_class_of_the_library_and_has_a_kind() -> None:
    built = {library.row_of(layer) and type(layer) for kind in LIBRARY_KINDS for layer in kind.build().modules()}
    seen = {(cls.__module__.split(".")[-2], cls.__name__) for cls in built if cls is not None}
    assert seen == library.TABLE.keys()


@every_kind
def test_the_adopted_forward_is_the_librarys(kind: Kind) -> None:
    checks.test_adopted_forward_is_the_librarys(kind)
    if not kind.name.startswith(("Qwen2VLVision", "Qwen2_5_VLVision", "Qwen3VLVision")):  # these have no dropout
        checks.test_attention_dropout_is_passed_on(kind)


@every_kind
def test_a_cut_equals_its_gates(kind: Kind) -> None:
    """For every legal unit: some of all sites, one site alone, and again what was cut before."""
    net = kind.adopt(kind.build())
    for structure in checks.unit_choices(kind.structure(net)):
        check_structure(net, structure)
    checks.test_cut_equals_gated_for_every_legal_unit(kind, 0)
    if kind.name in ONE_OF_EACH:
        checks.test_each_site_alone(kind)
        checks.test_a_cut_model_describes_itself_and_is_cut_again(kind)


@every_kind
def test_what_the_librarys_own_class_is_told_is_enough(kind: Kind) -> None:
    """The stock forward on the cut weights, with the attributes that `told` names, gives the cut model's output."""
    for number in range(len(checks.unit_choices(kind.structure(kind.adopt(kind.build()))))):
        small = kind.adopt(kind.build())
        structure = checks.choice(kind, small, number)
        checks.cut(small, structure, checks.random_keep(structure, 1))
        want = kind.run(small)
        stock = kind.build()
        for name, parameter in small.named_parameters():
            stock.get_parameter(name).data = parameter.data
        for path, (attributes, factor) in library.cut_attributes(small).items():
            assert factor == 1.0
            layer: Any = stock.get_submodule(path)
            vars(layer).update(attributes)
            if "rotary" in attributes:
                layer.register_forward_pre_hook(loader.turned, with_kwargs=True)
            if "spread" in attributes:
                layer.register_forward_hook(loader.spread)
            if "picked" in attributes:
                layer.register_forward_pre_hook(loader.picked)
        assert checks.worst(kind.run(stock), want) <= (1e-12 if structure.sites[0].unit == "value dim" else 0)


@pytest.mark.parametrize("name", NORMED)
def test_values_are_cut_where_queries_and_keys_cannot_be(name: str) -> None:
    """Beside groups of heads, where the norm is over each; q and k stay in the prunable set, and whole."""
    kind = NAMES[name]
    net = kind.adopt(kind.build())
    structure = kind.structure(net)
    by_value = structure.with_units(checks.attention_by("value dim"))
    assert by_value.matrices.keys() == structure.matrices.keys()
    assert by_value.size == structure.size
    site = next(s for s in by_value.sites if s.kind == "attention")
    q, k = (net.get_parameter(part).shape for part in site.beside)
    before = sum(p.numel() for p in net.parameters())
    checks.cut(net, by_value, {site.name: torch.arange(site.units // 2)})
    assert [net.get_parameter(part).shape for part in site.beside] == [q, k]
    assert before - sum(p.numel() for p in net.parameters()) == site.parameters_per_unit * (site.units // 2)
    if site.variants or name != "InternVLVisionModel6B":
        checks.test_one_unit_after_another(kind)


@pytest.mark.parametrize("name", ["Qwen3Model", "Gemma3TextModel"])
def test_narrow_values_in_a_cache_continue_as_the_whole_stream_does(name: str) -> None:
    kind = NAMES[name]
    net: Any = kind.adopt(kind.build())
    structure = kind.structure(net).with_units(checks.attention_by("value dim"))
    checks.cut(net, structure, checks.random_keep(structure, 0))
    ids, held = tokens(2, 7), DynamicCache(config=None)
    want = net(ids, use_cache=False).last_hidden_state
    net(ids[:, :4], **with_cache(net, held))
    found = net(ids[:, 4:], **with_cache(net, held)).last_hidden_state
    assert checks.worst(found, want[:, 4:]) <= 1e-10
    assert {layer.values.shape[-1] for layer in held.layers} == {
        len(layer.values) for layer in net.modules() if hasattr(layer, "values")
    }


def _siglip() -> nn.Module:
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3}
    return ready(SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=16, patch_size=8, vision_use_head=False)))


def _qwen3() -> nn.Module:
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    return ready(Qwen3Model(Qwen3Config(vocab_size=50, num_key_value_heads=2, head_dim=8, **sizes)))


def test_qk_norm_refuses_what_it_runs_over() -> None:
    structure = Structure((library.tower(library.adopt(_qwen3()), "layers", "language"),))
    for unit in ("dim", "rope pair"):
        with pytest.raises(UserError, match=f"cannot be cut by '{unit}': QK-norm runs over the width of the head"):
            structure.sites[0].with_unit(unit)


def test_a_norm_over_all_heads_refuses_all_but_values() -> None:
    kind = NAMES["InternVLVisionModel6B"]
    structure = kind.structure(kind.adopt(kind.build()))
    for unit in ("dim", "rope pair", "head"):
        with pytest.raises(UserError, match=f"cannot be cut by '{unit}': QK-norm runs over all.*Legal here: value dim"):
            structure.sites[0].with_unit(unit)


def test_values_go_with_the_queries_where_these_can_be_narrowed() -> None:
    for name in ("Qwen2Model", "SiglipVisionModel"):
        kind = NAMES[name]
        with pytest.raises(UserError, match="cannot be cut by 'value dim': the library views values by the width of"):
            kind.structure(kind.adopt(kind.build())).sites[0].with_unit("value dim")


def test_an_unknown_class_is_refused_by_name() -> None:
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 3}
    with pytest.raises(UserError, match="BertAttention and BertSelfAttention, and vlbench knows no legal cut"):
        library.tower(BertModel(BertConfig(vocab_size=9, **sizes)), "encoder.layer", "text")


def test_the_older_files_refuse_classes_that_are_not_theirs() -> None:
    """SigLIP described as CLIP was cut in silence, and off by 0.89 of 3.2; Qwen3 lost its QK-norm."""
    with pytest.raises(UserError, match="SiglipAttention, and nn/clip_vision"):
        clip_vision.tower(clip_vision.adopt(_siglip()), "encoder.layers", 2)
    with pytest.raises(UserError, match="Qwen3Attention, and nn/llama"):
        llama.tower(llama.adopt(_qwen3()), "layers")


@pytest.mark.parametrize(
    ("name", "sizes", "match"),
    [
        ("vit_small_patch16_dinov3", {"embed_dim": 24, "num_heads": 3, "depth": 1, "img_size": 32}, "EvaAttention"),
        ("vit_giant_patch14_dinov2", {"embed_dim": 24, "num_heads": 3, "depth": 1, "img_size": 28}, "GluMlp|SwiGLU"),
    ],
)
def test_timm_refuses_what_it_would_describe_wrongly(name: str, sizes: dict[str, int], match: str) -> None:
    net = timm.create_model(name, **sizes)
    with pytest.raises(UserError, match=match):
        timm_nn.vision_tower(timm_nn.adopt(net))
