"""Folders of the original llava_qwen, VILA and Prismatic layouts in other sizes and spellings. Oracle: a plain forward
of the library's stock modules, put together here by hand; what would be computed otherwise is refused."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    BertTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from vlbench.compression.saved import open_checkpoint
from vlbench.errors import UserError
from vlbench.plugins.table import table

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(5, 64))]
TEXT = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "max_position_embeddings": 4096, "rope_theta": 1e6,
    "tie_word_embeddings": False,
}  # fmt: skip
VISION = {
    "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 56,
    "patch_size": 14,
}  # fmt: skip
IDS = [5, 9, 7, 20]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    torch.manual_seed(3)
    with torch.no_grad():
        yield


def randomised(net: Any) -> Any:
    for parameter in net.parameters():
        parameter.copy_(torch.randn(parameter.shape) * (parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.2))
    return net.eval()


def siglip(sizes: dict[str, Any]) -> Any:
    return randomised(SiglipVisionModel(SiglipVisionConfig(**{**VISION, **sizes}, vision_use_head=False)))


def qwen(sizes: dict[str, Any]) -> Any:
    told = {**TEXT, **sizes}
    rope = {"rope_type": "default", "rope_theta": told.pop("rope_theta")}
    return randomised(Qwen2ForCausalLM(Qwen2Config(**told, rope_parameters=rope)))


def vocabulary(folder: Path) -> None:
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, eos_token="[SEP]")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)


def plain(net: Any) -> dict[str, Tensor]:
    """Every tensor once, as a file has it."""
    seen: set[int] = set()
    return {k: v.clone() for k, v in net.state_dict().items() if not (v.data_ptr() in seen or seen.add(v.data_ptr()))}


def opened(name: str, folder: Path) -> Any:
    cls = table("models").get(name).load()
    return open_checkpoint(cls, next(c for c in cls.cards if c.name == name), folder)[0]


def close(found: Tensor, want: Tensor) -> None:
    assert float((found - want).abs().max()) <= 2e-6 * float(want.abs().max())


def logits(model: Any, ids: list[int]) -> Tensor:
    """Of the model's own language part, as it reads embeddings."""
    out: Tensor = model.language.head(model.language.net(input_ids=torch.tensor([ids])).last_hidden_state)
    return out


# LLaVE --------------------------------------------------------------------------------------------------------------


def llave(
    folder: Path, text: dict[str, Any], vision: dict[str, Any], files: int = 1, **config: Any
) -> tuple[Any, Any, Any]:
    """Writes the folder; the vision tower, the projector and the language model that are in it."""
    tower, language = siglip({"image_size": 56, **vision}), qwen(text)
    wide, narrow = tower.config.hidden_size, language.config.hidden_size
    projector = randomised(nn.Sequential(nn.Linear(wide, narrow), nn.GELU(), nn.Linear(narrow, narrow)))
    tensors = {
        **{f"model.vision_tower.vision_tower.vision_model.{k}": v for k, v in plain(tower).items()},
        **{f"model.mm_projector.{k}": v for k, v in projector.state_dict().items()},
        "model.image_newline": torch.randn(narrow), **plain(language),
    }  # fmt: skip
    names = sorted(tensors)
    parts = [names[i::files] for i in range(files)]
    file_of = [
        f"model-{i + 1:05}-of-{files:05}.safetensors" if files > 1 else "model.safetensors" for i in range(files)
    ]
    for part, file in zip(parts, file_of, strict=True):
        save_file({name: tensors[name].contiguous() for name in part}, folder / file)
    if files > 1:
        index = {name: file for part, file in zip(parts, file_of, strict=True) for name in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    told = {
        "model_type": "llava_qwen", "mm_vision_tower": f"siglip-patch14-{tower.config.image_size}",
        "image_aspect_ratio": "anyres_max_9", "image_grid_pinpoints": "(1x1),...,(2x2)", **TEXT, **text,
        "vision_config": {"num_attention_heads": tower.config.num_attention_heads}, **config,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({k: v for k, v in told.items() if v is not ...}))
    vocabulary(folder)
    return tower, projector, language


LLAVE: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "as it is": ({}, {}, {}),
    "deeper": ({"num_hidden_layers": 3}, {"num_hidden_layers": 4}, {}),
    "one block": ({"num_hidden_layers": 1}, {"num_hidden_layers": 1}, {}),
    "wider": ({"hidden_size": 48, "intermediate_size": 64}, {"hidden_size": 32, "intermediate_size": 50}, {}),
    "more heads": ({"num_attention_heads": 8, "num_key_value_heads": 4}, {"num_attention_heads": 6}, {}),
    "no groups": ({"num_key_value_heads": 4}, {"num_attention_heads": 2}, {}),
    "one group": ({"num_key_value_heads": 1}, {"num_attention_heads": 1}, {}),
    "tied": ({"tie_word_embeddings": True}, {}, {}),
    "shards": ({}, {}, {"files": 3}),
    "tied shards": ({"tie_word_embeddings": True}, {}, {"files": 2}),
    "other pixels": ({}, {"image_size": 42}, {}),
    "other patches": ({}, {"image_size": 56, "patch_size": 8}, {}),
    "other theta": ({"rope_theta": 5000.0}, {}, {}),
    "no theta": ({"rope_theta": 1e4}, {}, {"rope_theta": ...}),
    "today's theta": ({"rope_theta": 777.0}, {}, {"rope_theta": ..., "rope_parameters": {"rope_theta": 777.0}}),
    "pairs": ({}, {}, {"image_grid_pinpoints": [[56, 56], [112, 56]]}),
    "other eps": ({"rms_norm_eps": 1e-2}, {}, {}),
    "more words": ({}, {}, {"mm_use_im_patch_token": True, "mm_spatial_pool_mode": "bilinear", "use_cache": True}),
}


@pytest.mark.parametrize("case", LLAVE)
def test_llave_of_other_sizes_is_a_plain_forward(case: str, tmp_path: Path) -> None:
    text, vision, config = LLAVE[case]
    tower, projector, language = llave(tmp_path, text, vision, **config)
    model = opened("llave-0.5b", tmp_path)
    tiles = torch.randn(2, 3, tower.config.image_size, tower.config.image_size)
    features = model.net.model.multi_modal_projector(model.net.model.vision_tower(tiles).last_hidden_state)
    hidden = tower.embeddings(tiles)
    for layer in tower.encoder.layers:
        hidden = layer(hidden, None)
    close(model.net.model.vision_tower(tiles, output_hidden_states=True).hidden_states[-1], hidden)
    assert features.shape == projector(hidden).shape
    close(model.net.model.multi_modal_projector(hidden), projector(hidden))
    close(logits(model, IDS), language(torch.tensor([IDS])).logits)


REFUSED_LLAVE = {
    "stretched positions": ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type=yarn"),
    "windows": ({"use_sliding_window": True}, "use_sliding_window=True"),
    "flat tiles": ({"mm_patch_merge_type": "flat"}, "mm_patch_merge_type=flat"),
    "a deep projector": ({"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type=mlp3x_gelu"),
    "a resampler": ({"mm_resampler_type": "spatial_pool"}, "mm_resampler_type=spatial_pool"),
    "marks of images": ({"mm_use_im_start_end": True}, "mm_use_im_start_end=True"),
    "padded squares": ({"image_aspect_ratio": "pad"}, "image_aspect_ratio=pad"),
    "a million shapes": ({"image_grid_pinpoints": "(1x1),...,(1000x1000)"}, "should be from 1 to 1000"),
    "shapes the wrong way round": ({"image_grid_pinpoints": "(2x2),...,(1x1)"}, "should be from 1 to 1000"),
    "no shapes": ({"image_grid_pinpoints": None}, "image_grid_pinpoints"),
    "tied by name alone": ({"tie_word_embeddings": True}, "one matrix by config.json, and two different ones"),
    "other layers": ({"num_hidden_layers": 3}, "layers.2.* is missing"),
    "other width": ({"hidden_size": 64}, "has shape"),
}


@pytest.mark.parametrize("case", REFUSED_LLAVE)
def test_llave_that_computes_something_else_is_refused(case: str, tmp_path: Path) -> None:
    config, match = REFUSED_LLAVE[case]
    llave(tmp_path, {}, {}, **config)
    with pytest.raises(UserError, match=match):
        opened("llave-0.5b", tmp_path)


# VILA ---------------------------------------------------------------------------------------------------------------

KINDS = ("linear", "mlp2x_gelu", "mlp_downsample", "mlp_downsample_2x2_fix", "mlp_downsample_3x3_fix")


def joined(x: Tensor, side: int) -> Tensor:
    """Patch by patch, by loops."""
    rows = round(x.shape[1] ** 0.5)
    grid = x.unflatten(1, (rows, rows))
    wide = -(-rows // side)
    blank = torch.zeros(len(x), x.shape[2])
    tokens = []
    for row in range(wide):
        for column in range(wide):
            cells = [(row * side + i, column * side + j) for i in range(side) for j in range(side)]
            tokens.append(torch.cat([grid[:, a, b] if max(a, b) < rows else blank for a, b in cells], -1))
    return torch.stack(tokens, 1)


def vila_projector(kind: str, wide: int, narrow: int) -> tuple[dict[str, Tensor], Callable[[Tensor], Tensor]]:
    side = 3 if "3x3" in kind else 2 if "downsample" in kind else 1
    if kind == "linear":
        layers: list[nn.Module] = [nn.Linear(wide, narrow)]
    elif kind == "mlp2x_gelu":
        layers = [nn.Linear(wide, narrow), nn.GELU(), nn.Linear(narrow, narrow)]
    elif side == 2:
        layers = [nn.LayerNorm(4 * wide), nn.Linear(4 * wide, narrow), nn.GELU(), nn.Linear(narrow, narrow)]
    else:
        first = [nn.LayerNorm(9 * wide), nn.Linear(9 * wide, 3 * wide), nn.GELU()]
        layers = [*first, nn.LayerNorm(3 * wide), nn.Linear(3 * wide, narrow), nn.GELU(), nn.Linear(narrow, narrow)]
    net, shift = randomised(nn.Sequential(*layers)), int(side > 1)
    names = {f"layers.{int(k.split('.')[0]) + shift}.{k.split('.')[1]}": v for k, v in net.state_dict().items()}
    names = {k.replace("layers.0.", "layers.") if kind == "linear" else k: v for k, v in names.items()}
    return names, lambda x: net(joined(x, side) if side > 1 else x)


def vila(
    folder: Path, kind: str, text: dict[str, Any], vision: dict[str, Any], llama: bool = False, **config: Any
) -> Any:
    tower = siglip(vision)
    language = qwen(text)
    if llama:
        sizes = {k: v for k, v in {**TEXT, **text}.items() if k != "rope_theta"}
        language = randomised(
            LlamaForCausalLM(LlamaConfig(**sizes, rope_parameters={"rope_type": "default", "rope_theta": 5e5}))
        )
    tensors, project = vila_projector(kind, tower.config.hidden_size, language.config.hidden_size)
    for part in ("llm", "vision_tower", "mm_projector"):
        (folder / part).mkdir()
    language.save_pretrained(folder / "llm", max_shard_size="20KB" if config.pop("shards", False) else "1GB")
    vocabulary(folder / "llm")
    prefix = config.pop("prefix", "vision_model.")
    save_file({f"{prefix}{k}": v for k, v in plain(tower).items()}, folder / "vision_tower" / "model.safetensors")
    more = config.pop("tower", {})
    (folder / "vision_tower" / "config.json").write_text(json.dumps({**tower.config.to_dict(), **more}, default=str))
    size = {"height": tower.config.image_size, "width": tower.config.image_size}
    (folder / "vision_tower" / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "SiglipImageProcessor", "size": size})
    )
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "mm_projector" / "model.safetensors")
    (folder / "mm_projector" / "config.json").write_text(json.dumps({"mm_projector_type": config.pop("said", kind)}))
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llava_llama", "mm_vision_select_layer": -2, **config})
    )
    return tower, project, language


VILA: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    **{kind: (kind, {}, {}, {}) for kind in KINDS},
    "padded 3 x 3": (KINDS[4], {}, {"image_size": 70}, {}),
    "padded 2 x 2": (KINDS[2], {}, {"image_size": 42}, {}),
    "deeper": (KINDS[2], {"num_hidden_layers": 3}, {"num_hidden_layers": 4}, {}),
    "wider": (KINDS[1], {"hidden_size": 48}, {"hidden_size": 32, "num_attention_heads": 8}, {}),
    "one group": (KINDS[2], {"num_key_value_heads": 1}, {}, {}),
    "tied": (KINDS[2], {"tie_word_embeddings": True}, {}, {}),
    "Llama": (KINDS[2], {}, {}, {"llama": True}),
    "shards of the language model": (KINDS[2], {}, {}, {"shards": True}),
    "the last block": (KINDS[0], {}, {"num_hidden_layers": 3}, {"mm_vision_select_layer": -1}),
    "the second block": (KINDS[0], {}, {"num_hidden_layers": 4}, {"mm_vision_select_layer": 2}),
    "bare names": (KINDS[2], {}, {}, {"prefix": ""}),
    "a path for a part": (KINDS[2], {}, {}, {"llm_cfg": "/somewhere/llm", "vision_tower_cfg": "/somewhere"}),
    "an encoder as it comes": (
        KINDS[2],
        {},
        {},
        {"image_encoder": {"_target_": "llava.model.encoders.BasicImageEncoder"}},
    ),
}


@pytest.mark.parametrize("case", VILA)
def test_vila_of_other_sizes_is_a_plain_forward(case: str, tmp_path: Path) -> None:
    kind, text, vision, config = VILA[case]
    tower, project, language = vila(tmp_path, kind, text, vision, **deepcopy(config))
    model = opened("vila1.5-3b", tmp_path)
    pixels = torch.randn(2, 3, tower.config.image_size, tower.config.image_size)
    selected = tower(pixels, output_hidden_states=True).hidden_states[config.get("mm_vision_select_layer", -2)]
    close(model.net.selected(pixels, model.blocks), selected)
    close(model.net.projector(selected), project(selected))
    close(logits(model, IDS), language(torch.tensor([IDS])).logits)


REFUSED_VILA = {
    "S2": ({"s2": True}, "several scales"),
    "S2 by class": ({"vision_tower_cfg": {"model_type": "siglip_s2"}}, "several scales"),
    "tiles": ({"image_aspect_ratio": "dynamic"}, "only resize"),
    "no first token": ({"mm_vision_select_feature": "patch"}, "mm_vision_select_feature=patch"),
    "marks of images": ({"mm_use_im_start_end": True}, "mm_use_im_start_end=True"),
    "another end": (
        {"image_encoder": json.dumps({"_target_": "BasicImageEncoder", "end_tokens": "</img>"})},
        "encodes images by",
    ),
    "an encoder of no kind": ({"image_encoder": "TSP"}, "encodes images by TSP"),
    "a block that is not there": ({"mm_vision_select_layer": -9}, "none of the 2 blocks"),
    "no block": ({"mm_vision_select_layer": 0}, "none of the 2 blocks"),
    "CLIP": ({"tower": {"model_type": "clip_vision_model"}}, "holds a clip_vision_model"),
    "a projector of no kind": ({"said": "mlp_shuffle"}, "mlp_shuffle"),
    "another projector": ({"said": "mlp2x_gelu"}, "of another architecture"),
}


@pytest.mark.parametrize("case", REFUSED_VILA)
def test_vila_that_computes_something_else_is_refused(case: str, tmp_path: Path) -> None:
    config, match = REFUSED_VILA[case]
    vila(tmp_path, KINDS[2], {}, {}, **config)
    with pytest.raises(UserError, match=match):
        opened("vila1.5-3b", tmp_path)


def test_a_context_that_vila_stretches_is_refused(tmp_path: Path) -> None:
    vila(tmp_path, KINDS[2], {}, {})
    file = tmp_path / "llm" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": 8192}))
    with pytest.raises(UserError, match="asks for 8192 positions of a model of 4096"):
        opened("vila1.5-3b", tmp_path)


# Prismatic ----------------------------------------------------------------------------------------------------------

TOWERS = {
    "clip-vit-l": [("featurizer", "vit_large_patch14_clip_336", {"act_layer": "quick_gelu"})],
    "siglip-vit-so400m": [("featurizer", "vit_so400m_patch14_siglip_224", {})],
    "dinov2-vit-l": [("featurizer", "vit_large_patch14_reg4_dinov2", {})],
    "dinosiglip-vit-so": [
        ("dino_featurizer", "vit_large_patch14_reg4_dinov2", {}),
        ("siglip_featurizer", "vit_so400m_patch14_siglip_224", {}),
    ],
}


def prismatic(
    folder: Path, kind: str, pixels: int, specifier: str = "no-align+gelu-mlp", text: dict[str, Any] | None = None,
    *, inside: bool = False, size: dict[str, Any] | None = None, **config: Any,
) -> tuple[list[Any], Any, Any]:  # fmt: skip
    sizes = {
        "embed_dim": 24,
        "depth": 3,
        "num_heads": 4,
        "mlp_ratio": 2.0,
        "img_size": pixels,
        "num_classes": 0,
        **(size or {}),
    }
    start = next(k for k in TOWERS if kind.startswith(k))
    towers = [(name, randomised(timm.create_model(of, **sizes, **more))) for name, of, more in TOWERS[start]]
    told = {k: v for k, v in {**TEXT, "rms_norm_eps": 1e-5, **(text or {})}.items() if k != "rope_theta"}
    language = randomised(LlamaForCausalLM(LlamaConfig(**told)))
    wide, narrow = sizes["embed_dim"] * len(towers), told["hidden_size"]
    widths = [wide, 4 * wide, narrow, narrow] if "fused" in specifier else [wide, narrow, narrow]
    widths = [wide, narrow] if specifier.endswith("linear") else widths
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.GELU()]
    project = randomised(nn.Sequential(*layers[:-1]))
    before = "" if specifier.endswith("linear") else "projector."
    parts = {
        "projector": {
            f"projector.{k.removeprefix('0.') if not before else k}": v for k, v in project.state_dict().items()
        },
        "llm_backbone": {f"llm.{k}": v for k, v in language.state_dict().items()},
    }
    if inside:
        parts["vision_backbone"] = {f"{name}.{k}": v for name, tower in towers for k, v in tower.state_dict().items()}
    else:
        for name, tower in towers:
            save_file(plain(tower), folder / f"{name}.safetensors")
    if specifier.endswith("linear"):
        parts["projector"] = {f"projector.{k}": v for k, v in project.state_dict().items()}
    (folder / "checkpoints").mkdir()
    torch.save({"model": parts}, folder / "checkpoints" / "latest-checkpoint.pt")
    model = {
        "vision_backbone_id": kind, "llm_backbone_id": "llama2-7b-pure", "arch_specifier": specifier,
        "image_resize_strategy": "resize-naive", **config,
    }  # fmt: skip
    heads = {
        "vision_config": {"num_heads": sizes["num_heads"]},
        "text_config": {"num_attention_heads": told["num_attention_heads"]},
    }
    (folder / "config.json").write_text(json.dumps({"model": model, **heads}))
    vocabulary(folder)
    return [tower for _, tower in towers], project, language


PRISMATIC: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "CLIP": (("clip-vit-l", 56), {}),
    "SigLIP": (("siglip-vit-so400m", 56), {}),
    "SigLIP at 384": (("siglip-vit-so400m-384px", 384), {"size": {"depth": 2, "embed_dim": 8, "num_heads": 2}}),
    "both at 384": (
        ("dinosiglip-vit-so-384px", 384, "no-align+fused-gelu-mlp"),
        {"size": {"depth": 2, "embed_dim": 8, "num_heads": 2}},
    ),
    "DINOv2": (("dinov2-vit-l", 224), {"size": {"depth": 2, "embed_dim": 8, "num_heads": 2}}),
    "both": (("dinosiglip-vit-so-56px", 56, "no-align+fused-gelu-mlp"), {}),
    "both, one MLP": (("dinosiglip-vit-so-56px", 56), {}),
    "linear": (("clip-vit-l", 56, "no-align+linear"), {}),
    "finetuned towers": (("clip-vit-l", 56), {"inside": True}),
    "both finetuned": (("dinosiglip-vit-so-56px", 56, "no-align+fused-gelu-mlp"), {"inside": True}),
    "deeper": (("clip-vit-l", 56, "no-align+gelu-mlp", {"num_hidden_layers": 3}), {"size": {"depth": 4}}),
    "wider": (("siglip-vit-so400m", 56, "no-align+gelu-mlp", {"hidden_size": 48}), {"size": {"embed_dim": 32}}),
    "other heads": (("clip-vit-l", 56, "no-align+gelu-mlp", {"num_attention_heads": 8}), {"size": {"num_heads": 2}}),
    "no groups": (("clip-vit-l", 56, "no-align+gelu-mlp", {"num_key_value_heads": 4}), {}),
    "one group": (("clip-vit-l", 56, "no-align+gelu-mlp", {"num_key_value_heads": 1}), {}),
    "other pixels": (("siglip-vit-so400m", 70), {}),
}


@pytest.mark.parametrize("case", PRISMATIC)
def test_prismatic_of_other_sizes_is_a_plain_forward(case: str, tmp_path: Path) -> None:
    words, more = PRISMATIC[case]
    towers, project, language = prismatic(tmp_path, *words, **more)
    model = opened("prism-clip-7b", tmp_path)
    assert model.config["image_size"] == words[1], "images are squashed to the pixels that the backbone is named for"
    pixels = torch.randn(1, len(towers), 3, words[1], words[1])
    patches = torch.cat(
        [t.get_intermediate_layers(pixels[:, i], n=[len(t.blocks) - 2])[0] for i, t in enumerate(towers)], -1
    )
    close(model.net.patches(pixels), patches)
    close(model.net.projector(patches), project(patches))
    close(logits(model, IDS), language(torch.tensor([IDS])).logits)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"image_resize_strategy": "letterbox"}, "only resize-naive"),
        ({"vision_backbone_id": "in1k-vit-l"}, "names the vision backbone"),
        ({"llm_backbone_id": "llama2-7b-chat"}, "the prompt of llama2-7b-chat is not known"),
        ({"llm_backbone_id": "mistral-v0.1-7b-instruct"}, "the prompt of mistral-v0.1-7b-instruct is not known"),
        ({"arch_specifier": "no-align+fused-gelu-mlp"}, "of another architecture"),
        ({"arch_specifier": "no-align+resampler"}, "resampler"),
    ],
)
def test_prismatic_that_computes_something_else_is_refused(config: dict[str, Any], match: str, tmp_path: Path) -> None:
    prismatic(tmp_path, "clip-vit-l", 56, **config)
    with pytest.raises(UserError, match=match):
        opened("prism-clip-7b", tmp_path)


@pytest.mark.parametrize(
    ("name", "asked"), [("max_patches", 100_000), ("max_patches", 0), ("image_grid_pinpoints", [[28, 28]] * 1001)]
)
def test_a_processor_with_too_many_tiles_is_refused(name: str, asked: Any) -> None:
    """The library tries all shapes of 100,000 tiles for an image, which takes days."""
    chat = importlib.import_module("vlbench.registry._chat")
    with pytest.raises(UserError, match=rf"{name} of .*should be from 1 to 1000"):
        chat.image_processor({name: asked}, "GotOcr2ImageProcessor")
