"""Tiny folders in the published layout of families of tests/registry/test_families.py: the library writes all of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ 'IMAGE' }}{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = {
    "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "bos_token_id": 256, "eos_token_id": 257,
    "pad_token_id": 256, "tie_word_embeddings": False,
}  # fmt: skip
VISION = {
    "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3,
}  # fmt: skip


@dataclass(frozen=True)
class Folder:
    """name: of a card. special: names of the tokenizer's special tokens as attributes, and the tokens. make: token ->
    id, to the library's model. processor: the library's whole processor. chat: whether a folder has a template of
    conversations; without one, the processor is given an answer as `suffix`, and asks for an image."""

    name: str
    special: dict[str, str]
    make: Callable[[dict[str, int]], Any]
    processor: Callable[[Any], Any]
    chat: bool = True

    def write(self, folder: Path, **weights: Any) -> tuple[Any, Any]:
        """The folder; gives the library's model in eval mode, and its processor."""
        torch.manual_seed(0)
        tokenizer = byte_tokenizer(self.special)
        ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.get_added_vocab()}
        net = self.make(ids | {"": len(tokenizer)}).eval()
        random = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                noise = torch.randn(parameter.shape, generator=random)
                wide = parameter.dim() > 1
                parameter.copy_(noise * parameter[0].numel() ** -0.5 if wide else 0.1 * noise + name.endswith("weight"))
        processor = self.processor(tokenizer)
        net.save_pretrained(folder, **weights)
        processor.save_pretrained(folder)
        return net, processor


def byte_tokenizer(special: dict[str, str]) -> Any:
    """A token for every byte, and the special ones."""
    words = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocab=words, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<|endoftext|>", eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"], extra_special_tokens=special,
    )  # fmt: skip


def _internvl(ids: dict[str, int]) -> Any:
    vision = hf.InternVLVisionConfig(**VISION, image_size=(28, 28), patch_size=(7, 7), attention_bias=True)
    text = hf.Qwen2Config(**TEXT, vocab_size=ids[""])
    config = hf.InternVLConfig(
        vision_config=vision, text_config=text, image_token_id=ids["<IMG_CONTEXT>"], image_seq_length=4,
        tie_word_embeddings=False,
    )  # fmt: skip
    return hf.InternVLForConditionalGeneration(config)


def _internvl_processor(tokenizer: Any) -> Any:
    images = hf.GotOcr2ImageProcessor(size={"height": 28, "width": 28}, image_mean=[0.4, 0.5, 0.6], max_patches=6)
    template = CHATML.replace("IMAGE", "<IMG_CONTEXT>\n")
    from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor

    return hf.InternVLProcessor(
        images, tokenizer, InternVLVideoProcessor(), image_seq_length=4, chat_template=template
    )  # fmt: skip


INTERNVL = Folder(
    "internvl3-1b",
    {
        "context_image_token": "<IMG_CONTEXT>", "start_image_token": "<img>", "end_image_token": "</img>",
        "video_token": "<video>",
    },
    _internvl, _internvl_processor,
)  # fmt: skip


def _qwen(ids: dict[str, int]) -> Any:
    vision = {
        "hidden_size": 32, "intermediate_size": 40, "depth": 2, "num_heads": 2, "patch_size": 4,
        "temporal_patch_size": 2, "spatial_merge_size": 2, "out_hidden_size": 32, "fullatt_block_indexes": [1],
        "window_size": 16,
    }  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    names = {"image": "<|image_pad|>", "video": "<|video_pad|>", "vision_start": "<|vision_start|>"}
    config = hf.Qwen2_5_VLConfig(
        vision_config=vision, text_config={**TEXT, "vocab_size": ids[""], "rope_parameters": rope},
        tie_word_embeddings=False, **{f"{name}_token_id": ids[token] for name, token in names.items()},
    )  # fmt: skip
    return hf.Qwen2_5_VLForConditionalGeneration(config)


def _qwen_processor(tokenizer: Any) -> Any:
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    images = hf.Qwen2VLImageProcessor(size={"shortest_edge": 64, "longest_edge": 1024}, patch_size=4)
    template = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    return hf.Qwen2_5_VLProcessor(images, tokenizer, Qwen2VLVideoProcessor(), chat_template=template)


QWEN = Folder(
    "qwen2.5-vl-3b",
    {
        "image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "vision_bos_token": "<|vision_start|>",
        "vision_eos_token": "<|vision_end|>",
    },
    _qwen, _qwen_processor,
)  # fmt: skip


def _onevision(ids: dict[str, int]) -> Any:
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**VISION, image_size=28, patch_size=7, vision_use_head=False),
        text_config=hf.Qwen2Config(**TEXT, vocab_size=ids[""]), image_token_index=ids["<image>"],
        video_token_index=ids["<video>"], image_grid_pinpoints=GRID, vision_aspect_ratio="anyres_max_2",
        tie_word_embeddings=False,
    )  # fmt: skip
    return hf.LlavaOnevisionForConditionalGeneration(config)


def _onevision_processor(tokenizer: Any) -> Any:
    from transformers.models.llava_onevision.video_processing_llava_onevision import LlavaOnevisionVideoProcessor

    images = hf.LlavaOnevisionImageProcessor(size={"height": 28, "width": 28}, image_grid_pinpoints=GRID)
    return hf.LlavaOnevisionProcessor(
        images, tokenizer, LlavaOnevisionVideoProcessor(), num_image_tokens=16, vision_aspect_ratio="anyres_max_2",
        vision_feature_select_strategy="full", chat_template=CHATML.replace("IMAGE", "<image>\n"),
    )  # fmt: skip


GRID = [[28, 28], [28, 56], [56, 28], [56, 56], [28, 84], [84, 28]]  # (height, width)
ONEVISION = Folder(
    "llava-onevision-0.5b", {"image_token": "<image>", "video_token": "<video>"}, _onevision, _onevision_processor
)  # fmt: skip


def _qwen3(ids: dict[str, int]) -> Any:
    vision = {
        "hidden_size": 32, "intermediate_size": 40, "depth": 3, "num_heads": 2, "patch_size": 4,
        "temporal_patch_size": 2, "spatial_merge_size": 2, "out_hidden_size": 32, "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4, "mrope_interleaved": True}
    names = {"image": "<|image_pad|>", "video": "<|video_pad|>", "vision_start": "<|vision_start|>"}
    text = {**TEXT, "num_hidden_layers": 3, "head_dim": 8, "vocab_size": ids[""], "rope_parameters": rope}
    config = hf.Qwen3VLConfig(
        vision_config=vision, text_config=text, tie_word_embeddings=False,
        **{f"{name}_token_id": ids[token] for name, token in names.items()},
    )  # fmt: skip
    return hf.Qwen3VLForConditionalGeneration(config)


def _qwen3_processor(tokenizer: Any) -> Any:
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    images = hf.Qwen2VLImageProcessor(size={"shortest_edge": 64, "longest_edge": 1024}, patch_size=4)
    template = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    return hf.Qwen3VLProcessor(images, tokenizer, Qwen3VLVideoProcessor(), chat_template=template)


QWEN3 = Folder("qwen3-vl-2b", QWEN.special, _qwen3, _qwen3_processor)


def _next(ids: dict[str, int]) -> Any:
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**{**VISION, "num_hidden_layers": 3}, image_size=28, patch_size=7),
        text_config=hf.MistralConfig(**TEXT, vocab_size=ids[""]), image_token_index=ids["<image>"],
        image_grid_pinpoints=GRID, tie_word_embeddings=False,
    )  # fmt: skip
    return hf.LlavaNextForConditionalGeneration(config)


def _next_processor(tokenizer: Any) -> Any:
    sides = {"height": 28, "width": 28}
    images = hf.LlavaNextImageProcessor(size={"shortest_edge": 28}, crop_size=sides, image_grid_pinpoints=GRID)
    return hf.LlavaNextProcessor(
        images, tokenizer, patch_size=7, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=CHATML.replace("IMAGE", "<image>\n"),
    )  # fmt: skip


NEXT = Folder("llava-1.6-mistral-7b", {"image_token": "<image>"}, _next, _next_processor)
USER = (
    "{% for m in messages %}{{ m['role'] | capitalize }}{{ ':' if m['content'][0]['type'] == 'image' else ': ' }}"
    "{% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %}"
    "{{ '<end_of_utterance>\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def _smol(kind: str) -> Callable[[dict[str, int]], Any]:
    def make(ids: dict[str, int]) -> Any:
        vision = {**VISION, "image_size": 28, "patch_size": 7}
        text = hf.LlamaConfig(**TEXT, vocab_size=ids[""])
        config = getattr(hf, f"{kind}Config")(
            vision_config=vision, text_config=text, image_token_id=ids["<image>"], scale_factor=2,
            tie_word_embeddings=False,
        )  # fmt: skip
        return getattr(hf, f"{kind}ForConditionalGeneration")(config)

    return make


def _smol_processor(kind: str) -> Callable[[Any], Any]:
    def make(tokenizer: Any) -> Any:
        sides = {"size": {"longest_edge": 84}, "max_image_size": {"longest_edge": 28}}
        images = getattr(hf, f"{kind}ImageProcessor")(**sides)
        videos = [hf.SmolVLMVideoProcessor()] if kind == "SmolVLM" else []
        return getattr(hf, f"{kind}Processor")(images, tokenizer, *videos, image_seq_len=4, chat_template=USER)

    return make


SMOL = {
    "image_token": "<image>", "fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
    **{f"tile_{row}_{column}": f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3)},
}  # fmt: skip
IDEFICS = Folder("idefics3-8b", SMOL, _smol("Idefics3"), _smol_processor("Idefics3"))
SMOLVLM = Folder("smolvlm2-256m", SMOL, _smol("SmolVLM"), _smol_processor("SmolVLM"))


def _gemma3(ids: dict[str, int]) -> Any:
    text = hf.Gemma3TextConfig(
        **{**TEXT, "tie_word_embeddings": True, "num_hidden_layers": 3}, head_dim=8, vocab_size=ids[""],
        sliding_window=8, sliding_window_pattern=2,
    )  # fmt: skip
    vision = hf.SiglipVisionConfig(**VISION, image_size=28, patch_size=7, vision_use_head=False)
    config = hf.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=ids["<image_soft_token>"],
        boi_token_index=ids["<start_of_image>"], eoi_token_index=ids["<end_of_image>"],
    )  # fmt: skip
    return hf.Gemma3ForConditionalGeneration(config)


def _gemma3_processor(tokenizer: Any) -> Any:
    images = hf.Gemma3ImageProcessor(size={"height": 28, "width": 28})
    template = CHATML.replace("IMAGE", "<start_of_image>")
    return hf.Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=4)


GEMMA3 = Folder(
    "gemma-3-4b",
    {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
    _gemma3, _gemma3_processor,
)  # fmt: skip


def _paligemma(ids: dict[str, int]) -> Any:
    text = hf.Gemma2Config(
        **{**TEXT, "tie_word_embeddings": True}, head_dim=8, vocab_size=ids[""] + 1200, sliding_window=16,
        query_pre_attn_scalar=8, attn_logit_softcapping=2.0, final_logit_softcapping=3.0,
    )  # fmt: skip
    vision = hf.SiglipVisionConfig(**VISION, image_size=28, patch_size=7, vision_use_head=False)
    config = hf.PaliGemmaConfig(
        text_config=text, vision_config=vision, image_token_index=ids["<image>"], projection_dim=32, hidden_size=32
    )
    return hf.PaliGemmaForConditionalGeneration(config)


def _paligemma_processor(tokenizer: Any) -> Any:
    images = hf.SiglipImageProcessor(size={"height": 28, "width": 28})
    images.image_seq_length = 16
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    return hf.PaliGemmaProcessor(images, tokenizer)


PALIGEMMA = Folder("paligemma2-3b", {"image_token": "<image>"}, _paligemma, _paligemma_processor, chat=False)
FOLDERS = (INTERNVL, QWEN, ONEVISION, QWEN3, NEXT, IDEFICS, SMOLVLM, GEMMA3, PALIGEMMA)
