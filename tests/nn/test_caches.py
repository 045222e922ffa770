"""A key-value cache is known by what it is: transformers renamed its argument, and a word that an attention does not
wait for is swallowed. The oracle of what caches do is tests/nn/test_kinds.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from tests.nn import kinds
from vlbench.nn import blip, llama, opt, t5
from vlbench.nn.caches import cache_in, with_cache


class Old(nn.Module):
    def forward(self, x: Any, past_key_values: Any = None, use_cache: bool = True) -> Any:
        return past_key_values, use_cache


class New(nn.Module):
    def forward(self, x: Any, cache: Any = None, use_cache: bool = True) -> Any:
        return cache, use_cache


@pytest.mark.parametrize("model", [Old(), New()])
def test_a_cache_goes_by_the_callees_word(model: nn.Module) -> None:
    held = DynamicCache()
    assert model(0, **with_cache(model, held)) == (held, True)
    assert model(0, **with_cache(model, None)) == (None, False)


def test_a_cache_is_found_under_any_word() -> None:
    plain = DynamicCache()
    for held in (plain, EncoderDecoderCache(plain, DynamicCache())):
        for word in ("past_key_values", "past_key_value", "cache"):
            assert cache_in({"mask": torch.zeros(1), "use_cache": True, word: held}) is held
    assert cache_in({"mask": torch.zeros(1), "use_cache": True, "cache": None}) is None


@pytest.mark.parametrize("attention", [blip.TextAttention, llama.LlamaAttention, opt.OPTAttention, t5.T5Attention])
@pytest.mark.parametrize("word", ["past_key_values", "cache"])
def test_every_attention_fills_its_cache_under_either_word(attention: type, word: str) -> None:
    """Nothing raises where a cache is swallowed: what is generated then ignores the text before it."""
    layer, call = _layer(attention)
    held = DynamicCache()
    call(**{word: held})
    call(**{word: held})
    assert held.get_seq_length(layer.layer_idx) == 2


def _layer(attention: type) -> tuple[Any, Any]:
    nets = {
        blip.TextAttention: lambda: blip.adopt(kinds.blip_vqa()),
        llama.LlamaAttention: lambda: llama.adopt(kinds.llama_model()),
        opt.OPTAttention: lambda: opt.adopt(kinds.opt_model()),
        t5.T5Attention: lambda: t5.adopt(kinds.t5_model("relu")),
    }
    net = nets[attention]()
    layer: Any = next(m for m in net.modules() if isinstance(m, attention))
    weight = next(layer.parameters())
    one = torch.randn(1, 1, weight.shape[1], dtype=weight.dtype)
    angles = (torch.ones(1, 1, getattr(layer, "head_dim", 2), dtype=weight.dtype),) * 2
    more = {"position_embeddings": angles} if attention is llama.LlamaAttention else {}
    return layer, lambda **words: layer(one, **more, **words)
