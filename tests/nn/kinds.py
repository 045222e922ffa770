"""Tiny random models of every attention kind: how to build, adopt, describe and run each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import timm.models.vision_transformer as timm_vit
import torch
from open_clip.model import CLIP
from torch import Tensor, nn
from transformers import (
    BlipConfig,
    BlipForQuestionAnswering,
    BlipTextConfig,
    BlipTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.blip_2.configuration_blip_2 import Blip2QFormerConfig, Blip2VisionConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel, Blip2VisionModel
from transformers.models.instructblip.configuration_instructblip import (
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
)
from transformers.models.instructblip.modeling_instructblip import InstructBlipQFormerModel, InstructBlipVisionModel

from vlbench.nn import blip, blip2_vision, clip_vision, llama, open_clip, opt, qformer, t5
from vlbench.nn import timm as timm_nn
from vlbench.nn.stream import reads_from_others
from vlbench.structure import Structure

VOCABULARY = 50


@dataclass(frozen=True)
class Kind:
    """build gives the library's own module; run is a deterministic forward in the module's own precision."""

    name: str
    build: Callable[[], nn.Module]
    adopt: Callable[[nn.Module], nn.Module]
    structure: Callable[[nn.Module], Structure]
    run: Callable[[nn.Module], Tensor]


def ready(net: nn.Module, seed: int = 0) -> nn.Module:
    """Float64, eval, every parameter random: biases and norms off their defaults, attention not uniform."""
    random = torch.Generator().manual_seed(seed)
    net = net.double().eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            noise = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
            if parameter.dim() > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:  # a norm's weight, or a bias
                parameter.copy_(0.2 * noise + (1.0 if name.endswith("weight") else 0.0))
    return net


def floats(net: nn.Module, *shape: int, seed: int = 1) -> Tensor:
    """Random input in the module's precision."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise.to(next(net.parameters()).dtype)


def tokens(*shape: int, seed: int = 2) -> Tensor:
    """Random token ids that are no special token."""
    return torch.randint(5, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def mask(*lengths: int, left: bool = False) -> Tensor:
    """(len(lengths), max length), 1 = real token."""
    longest = max(lengths)
    rows = [[0] * (longest - n) + [1] * n if left else [1] * n + [0] * (longest - n) for n in lengths]
    return torch.tensor(rows)


def deit(*, qk_norm: bool = False) -> nn.Module:
    size = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
    return ready(timm_vit.VisionTransformer(**size, qk_norm=qk_norm, attn_drop_rate=0.1))


def clip() -> nn.Module:
    vision = {"layers": 2, "width": 24, "head_width": 8, "patch_size": 8, "image_size": 16}
    text = {"context_length": 6, "vocab_size": VOCABULARY, "width": 16, "heads": 2, "layers": 2}
    net = CLIP(16, vision, text, quick_gelu=True)
    for block in (*net.visual.transformer.resblocks, *net.transformer.resblocks):
        block.attn.dropout = 0.1
    return ready(net)


def run_clip(net: nn.Module) -> Tensor:
    return torch.cat([net.encode_image(floats(net, 2, 3, 16, 16)), net.encode_text(tokens(2, 6))])


_BLIP_TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "encoder_hidden_size": 24, "intermediate_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 3, "max_position_embeddings": 16,
    "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "pad_token_id": 0, "is_decoder": True,
    "attention_probs_dropout_prob": 0.1,
}  # fmt: skip


def blip_vqa() -> nn.Module:
    vision = {
        "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3,
        "image_size": 16, "patch_size": 8, "attention_dropout": 0.1,
    }  # fmt: skip
    return ready(BlipForQuestionAnswering(BlipConfig(text_config=_BLIP_TEXT, vision_config=vision)))


def blip_vqa_structure(net: nn.Module) -> Structure:
    answer = blip.text_tower(net, "text_decoder.bert.encoder.layer", "answer", read_by=())
    question = blip.text_tower(net, "text_encoder.encoder.layer", "question", read_by=reads_from_others([answer]))
    return Structure((blip.vision_tower(net, read_by=reads_from_others([question])), question, answer))


def run_blip_vqa(net: nn.Module) -> Tensor:
    image = net.vision_model(floats(net, 2, 3, 16, 16)).last_hidden_state
    question = net.text_encoder(tokens(2, 5), encoder_hidden_states=image).last_hidden_state
    return net.text_decoder(tokens(2, 4, seed=3), encoder_hidden_states=question, use_cache=False).logits


def blip_nlvr() -> nn.Module:
    config = BlipTextConfig(**_BLIP_TEXT)
    net = BlipTextModel(config, add_pooling_layer=False)
    for index, layer in enumerate(net.encoder.layer):
        layer.crossattention = blip.TwinCrossAttention(config, index, merge=index > 0)
    return ready(net)


def run_blip_nlvr(net: nn.Module) -> Tensor:
    images = floats(net, 2, 2 * 4, 24)  # two images of four tokens, joined
    return net(tokens(2, 5), encoder_hidden_states=images).last_hidden_state


def t5_model(feed_forward: str) -> nn.Module:
    config = T5Config(
        vocab_size=VOCABULARY, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3, pad_token_id=0,
        decoder_start_token_id=0, eos_token_id=1, feed_forward_proj=feed_forward, tie_word_embeddings=False,
    )  # fmt: skip
    return ready(T5ForConditionalGeneration(config))


def t5_structure(net: nn.Module) -> Structure:
    return Structure((t5.tower(net, "encoder.block", "encoder"), t5.tower(net, "decoder.block", "decoder")))


def run_t5(net: nn.Module) -> Tensor:
    """With and without padding: transformers then passes a mask, or trusts `is_causal`."""
    plain = net(tokens(2, 7), decoder_input_ids=tokens(2, 4, seed=3), use_cache=False).logits
    padded = net(tokens(2, 7), mask(7, 4), decoder_input_ids=tokens(2, 4, seed=3), use_cache=False).logits
    return torch.cat([plain, padded])


def llama_model() -> nn.Module:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, attention_bias=True, mlp_bias=True,
        max_position_embeddings=64, attention_dropout=0.1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return ready(LlamaForCausalLM(config))


def run_llama(net: nn.Module) -> Tensor:
    """With and without padding: transformers then passes a mask, or trusts `is_causal`."""
    plain = net(tokens(2, 7), use_cache=False).logits
    return torch.cat([plain, net(tokens(2, 7), mask(7, 4), use_cache=False).logits])


def opt_model() -> nn.Module:
    config = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=24, word_embed_proj_dim=24, ffn_dim=32, num_hidden_layers=2,
        num_attention_heads=3, max_position_embeddings=64, dropout=0.0, attention_dropout=0.1, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return ready(OPTForCausalLM(config))


def run_opt(net: nn.Module) -> Tensor:
    """With and without padding: transformers then passes a mask, or trusts `is_causal`."""
    plain = net(tokens(2, 7), use_cache=False).logits
    return torch.cat([plain, net(tokens(2, 7), mask(7, 4), use_cache=False).logits])


_VISION = {
    "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 16,
    "patch_size": 8, "attention_dropout": 0.1,
}  # fmt: skip


def blip2_vision_model() -> nn.Module:
    return ready(Blip2VisionModel(Blip2VisionConfig(**_VISION)))


def instruct_vision_model() -> nn.Module:
    return ready(InstructBlipVisionModel(InstructBlipVisionConfig(**_VISION)))


def clip_vision_model() -> nn.Module:
    return ready(CLIPVisionModel(CLIPVisionConfig(**_VISION, hidden_act="quick_gelu")))


def run_vision(net: nn.Module) -> Tensor:
    return net(floats(net, 2, 3, 16, 16)).last_hidden_state


def blip2_vision_structure(net: nn.Module) -> Structure:
    return Structure((blip2_vision.vision_tower(net, "encoder.layers", read_by=()),))


_QFORMER = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 3, "encoder_hidden_size": 20, "cross_attention_frequency": 2,
    "max_position_embeddings": 16,
}  # fmt: skip


def blip2_qformer() -> nn.Module:
    return ready(Blip2QFormerModel(Blip2QFormerConfig(**_QFORMER, use_qformer_text_input=True)))


def run_blip2_qformer(net: nn.Module) -> Tensor:
    """Four query tokens followed by three of text."""
    return net(
        floats(net, 2, 7, 24), 4, attention_mask=mask(7, 5),
        encoder_hidden_states=floats(net, 2, 6, 20, seed=3),
    ).last_hidden_state  # fmt: skip


def instruct_qformer() -> nn.Module:
    return ready(InstructBlipQFormerModel(InstructBlipQFormerConfig(**_QFORMER)))


def run_instruct_qformer(net: nn.Module) -> Tensor:
    return net(
        tokens(2, 3), attention_mask=mask(7, 5), query_embeds=floats(net, 2, 4, 24),
        encoder_hidden_states=floats(net, 2, 6, 20, seed=3), encoder_attention_mask=mask(6, 4),
    ).last_hidden_state  # fmt: skip


def qformer_structure(net: nn.Module) -> Structure:
    return Structure((qformer.tower(net, "encoder.layer"),))


def vit_structure(net: nn.Module) -> Structure:
    return Structure((timm_nn.vision_tower(net),))


def run_vit(net: nn.Module) -> Tensor:
    return net(floats(net, 2, 3, 16, 16))


KINDS = (
    Kind("deit", deit, timm_nn.adopt, vit_structure, run_vit),
    Kind("deit_qk_norm", lambda: deit(qk_norm=True), timm_nn.adopt, vit_structure, run_vit),
    Kind(
        "clip", clip, open_clip.adopt,
        lambda net: Structure((open_clip.vision_tower(net), open_clip.text_tower(net))), run_clip,
    ),
    Kind("blip_vqa", blip_vqa, blip.adopt, blip_vqa_structure, run_blip_vqa),
    Kind(
        "blip_nlvr", blip_nlvr, blip.adopt,
        lambda net: Structure((blip.text_tower(net, "encoder.layer", "text", read_by=()),)), run_blip_nlvr,
    ),
    Kind("t5", lambda: t5_model("gated-gelu"), t5.adopt, t5_structure, run_t5),
    Kind("t5_plain", lambda: t5_model("relu"), t5.adopt, t5_structure, run_t5),
    Kind("llama", llama_model, llama.adopt, lambda net: Structure((llama.tower(net, read_by=["lm_head"]),)), run_llama),
    Kind("opt", opt_model, opt.adopt, lambda net: Structure((opt.tower(net, read_by=["lm_head"]),)), run_opt),
    Kind("blip2_vision", blip2_vision_model, blip2_vision.adopt, blip2_vision_structure, run_vision),
    Kind("instruct_vision", instruct_vision_model, blip2_vision.adopt, blip2_vision_structure, run_vision),
    Kind(
        "clip_vision", clip_vision_model, clip_vision.adopt,
        lambda net: Structure((clip_vision.tower(net, "encoder.layers", 2, read_by=()),)), run_vision,
    ),
    Kind("blip2_qformer", blip2_qformer, qformer.adopt, qformer_structure, run_blip2_qformer),
    Kind("instruct_qformer", instruct_qformer, qformer.adopt, qformer_structure, run_instruct_qformer),
)  # fmt: skip
