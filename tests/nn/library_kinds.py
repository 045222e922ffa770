"""Tiny random models of the attention classes in vlbench/nn/library.py, each with its deterministic run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from tests.nn.kinds import VOCABULARY, Kind, floats, ready, tokens
from vlbench.nn import library
from vlbench.structure import Structure

_TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "attention_dropout": 0.1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_VISION = {
    "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 16,
    "patch_size": 8, "attention_dropout": 0.1,
}  # fmt: skip
_PACKED = {
    "hidden_size": 32, "intermediate_size": 40, "depth": 2, "num_heads": 2, "patch_size": 4, "temporal_patch_size": 2,
    "spatial_merge_size": 2, "out_hidden_size": 24,
}  # fmt: skip
_MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}


def _text(model: str, config: str, layers: str = "layers", **more: Any) -> Kind:
    def build() -> nn.Module:
        return ready(getattr(hf, model)(getattr(hf, config)(**{**_TEXT, **more})))

    def run(net: nn.Module) -> Tensor:
        """With and without padding: transformers then passes a mask, or trusts `is_causal`."""
        seen = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
        plain = net(tokens(2, 7), use_cache=False).last_hidden_state
        return torch.cat([plain, net(tokens(2, 7), seen, use_cache=False).last_hidden_state])

    return _kind(model, build, layers, run)


def _vision(model: str, config: str, layers: str, **more: Any) -> Kind:
    def build() -> nn.Module:
        return ready(getattr(hf, model)(getattr(hf, config)(**{**_VISION, **more})))

    return _kind(model, build, layers, lambda net: net(floats(net, 2, 3, 16, 16)).last_hidden_state)


def _packed(name: str, model: Any, **more: Any) -> Kind:
    """Vision towers that read all patches of all images in one row: here of 4 x 8 and 4 x 4 patches."""

    def run(net: nn.Module) -> Tensor:
        pixels = floats(net, 4 * 8 + 4 * 4, 3 * 2 * 4 * 4)
        return net(pixels, torch.tensor([[1, 4, 8], [1, 4, 4]])).pooler_output

    return _kind(name, lambda: ready(model(model.config_class(**{**_PACKED, **more}))), "blocks", run)


def _kind(name: str, build: Callable[[], nn.Module], layers: str, run: Callable[[nn.Module], Tensor]) -> Kind:
    def structure(net: nn.Module) -> Structure:
        return Structure((library.tower(net, layers, "tower", modality="vision", read_by=()),))

    return Kind(name, build, library.adopt, structure, run)


def _idefics() -> Kind:
    from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
    from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionTransformer

    def build() -> nn.Module:
        return ready(Idefics3VisionTransformer(Idefics3VisionConfig(**_VISION)))

    return _kind("Idefics3", build, "encoder.layers", lambda net: net(floats(net, 2, 3, 16, 16)).last_hidden_state)


def _smol() -> Kind:
    from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionTransformer

    def build() -> nn.Module:
        return ready(SmolVLMVisionTransformer(SmolVLMVisionConfig(**_VISION)))

    return _kind("SmolVLM", build, "encoder.layers", lambda net: net(floats(net, 2, 3, 16, 16)).last_hidden_state)


def _internvl() -> list[Kind]:
    """As the released one of 300M is, and as that of 6B."""
    sizes = {"image_size": (16, 16), "patch_size": (8, 8), "attention_bias": True, "layer_norm_eps": 1e-6}
    small = _vision("InternVLVisionModel", "InternVLVisionConfig", "encoder.layer", **sizes)
    large = _vision("InternVLVisionModel", "InternVLVisionConfig", "encoder.layer", use_qk_norm=True, **sizes)
    return [small, replace(large, name="InternVLVisionModel6B")]


def _qwen_vision() -> list[Kind]:
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

    windows = {"fullatt_block_indexes": [1], "window_size": 16}
    deep = {"num_position_embeddings": 16, "deepstack_visual_indexes": [0], "initializer_range": 0.02}
    old = {"embed_dim": 32, "hidden_size": 24, "mlp_ratio": 2}
    return [
        _packed("Qwen2VLVision", Qwen2VisionTransformerPretrainedModel, **old),
        _packed("Qwen2_5_VLVision", Qwen2_5_VisionTransformerPretrainedModel, **windows),
        _packed("Qwen3VLVision", Qwen3VLVisionModel, **deep),
    ]


LIBRARY_KINDS = (
    _text("LlamaModel", "LlamaConfig"),
    _text("MistralModel", "MistralConfig", sliding_window=3),
    _text("Qwen2Model", "Qwen2Config"),
    _text("Qwen3Model", "Qwen3Config"),
    _text("GemmaModel", "GemmaConfig"),
    _text("Gemma2Model", "Gemma2Config", sliding_window=6),
    _text("Gemma3TextModel", "Gemma3TextConfig", sliding_window=3),
    _text("Qwen2VLTextModel", "Qwen2VLTextConfig", rope_parameters=_MROPE),
    _text("Qwen2_5_VLTextModel", "Qwen2_5_VLTextConfig", rope_parameters=_MROPE),
    _text("Qwen3VLTextModel", "Qwen3VLTextConfig", rope_parameters=_MROPE),
    _vision("CLIPVisionModel", "CLIPVisionConfig", "encoder.layers"),
    _vision("SiglipVisionModel", "SiglipVisionConfig", "encoder.layers", vision_use_head=False),
    _vision("Dinov2Model", "Dinov2Config", "encoder.layer", attention_probs_dropout_prob=0.1, mlp_ratio=2),
    _vision(
        "Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", "encoder.layer", attention_probs_dropout_prob=0.1,
        mlp_ratio=2,
    ),
    _vision("DINOv3ViTModel", "DINOv3ViTConfig", "model.layer", use_gated_mlp=True, num_register_tokens=2),
    *_internvl(),
    _idefics(),
    _smol(),
    *_qwen_vision(),
)  # fmt: skip
