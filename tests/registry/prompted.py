"""Tiny random BLIP-2, InstructBLIP and LLaVA of every language model, in float64."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertTokenizer

from tests.nn.kinds import ready
from vlbench.capability import Batch
from vlbench.task import Sample

WORDS = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("a", "b", "c", "d", "e", "f", "g", "h", "is", "the", "red", "blue", "one", "two", "?"),
    *("photo", "of", "question", "short", "answer", ":"),
)
VOCABULARY = len(WORDS)  # no word to spare: what a family adds to the tokenizer shows
VISION = {
    "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
QFORMER = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2,
    "num_attention_heads": 2, "encoder_hidden_size": 24, "cross_attention_frequency": 2, "max_position_embeddings": 32,
}  # fmt: skip
TEXT: Mapping[str, Mapping[str, Any]] = {
    "t5": {
        "model_type": "t5", "vocab_size": VOCABULARY, "d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 2,
        "num_heads": 3, "pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 3,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "dropout_rate": 0.0,
    },
    "opt": {
        "model_type": "opt", "vocab_size": VOCABULARY, "hidden_size": 24, "word_embed_proj_dim": 24, "ffn_dim": 32,
        "num_hidden_layers": 2, "num_attention_heads": 3, "max_position_embeddings": 64, "pad_token_id": 1,
        "bos_token_id": 2, "eos_token_id": 3, "dropout": 0.0,
    },
    "llama": {
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 40,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
    },
}  # fmt: skip
PROMPTS = {"answer": "question : {} short answer :", "caption": "a photo of"}
NAMES = ("blip2-t5", "blip2-opt", "instructblip-t5", "instructblip-llama", "llava-llama")


def family(name: str) -> Any:
    """The class, by the first word of a name."""
    first = name.partition("-")[0]
    module = importlib.import_module(f"vlbench.registry.{first}")
    return {"blip2": "Blip2", "instructblip": "InstructBlip", "llava": "Llava"}[first], module


def configuration(name: str) -> dict[str, Any]:
    language = name.rpartition("-")[2]
    if name.startswith("llava"):
        vision = {**VISION, "model_type": "clip_vision_model", "num_hidden_layers": 3, "projection_dim": 8}
        prompts = {
            "answer": "<image> question : {} short answer :",
            "caption": "the <image> a photo",
        }
        return {
            "model_type": "llava", "vision_config": vision, "text_config": {**TEXT[language]}, "prompts": prompts,
            "image_token_index": VOCABULARY - 1,
        }  # fmt: skip
    return {
        "vision_config": {**VISION}, "qformer_config": {**QFORMER}, "text_config": {**TEXT[language]},
        "num_query_tokens": 3, "prompts": PROMPTS,
    }  # fmt: skip


def tokenizer_into(folder: Path) -> Path:
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(folder)
    return folder


def build(name: str, folder: Path, seed: int = 0) -> Any:
    """Every parameter random, none at its default."""
    title, module = family(name)
    cls = getattr(module, title)
    model = cls.build(cls.cards[0], configuration(name), tokenizer_into(folder))
    ready(model.net, seed)
    with torch.no_grad():
        if hasattr(model.net, "query_tokens"):
            model.net.query_tokens.normal_(generator=torch.Generator().manual_seed(seed))
    return model


QUESTIONS = ("is the a red ?", "c d ?", "one blue", "is the a red ?", "b")
OWNER = torch.tensor([[0], [0], [0], [1], [2]])
ANSWERS: tuple[dict[str, float], ...] = ({"red": 0.6, "a b c": 0.4}, {"two": 1.0}, {"red": 1.0}, {"d e": 0.5}, {"f": 1})


def images(count: int = 3, seed: int = 3) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(**options: Any) -> Batch:
    """Five questions about three images."""
    samples = [Sample(str(i), (), q, a) for i, (q, a) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))]
    return Batch(samples, images(), OWNER, options)


def captions(**options: Any) -> Batch:
    texts = ("a red b", "the c d e f", "one", "two a", "b b b b b")
    return Batch([Sample(str(i), (), target=t) for i, t in enumerate(texts)], images(), OWNER, options)
