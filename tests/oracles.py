"""Reading the recorded outputs of the original implementations (../shared/oracles)."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertTokenizer

from vlbench.tensors.reading import load_into


class Oracle:
    """One file pair: arrays by key, and the facts beside them."""

    def __init__(self, file: Path) -> None:
        self.arrays = np.load(file)
        self.facts: dict[str, Any] = json.loads(file.with_suffix(".json").read_text())

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.arrays[key]))

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Every array whose key starts with `prefix`, under the rest of its key."""
        return {k.removeprefix(prefix): self[k] for k in self.arrays.files if k.startswith(prefix)}


def assert_final_weights(oracle: Oracle, net: torch.nn.Module) -> None:
    """Sum of squares, largest, first six and last six values of every weight after the last step. (The recorded sum
    itself was never compared: it cancels.)"""
    keys = importlib.import_module("vlbench.registry._blip_keys")
    checked = 0
    for key, wanted in zip(oracle.facts["final_stats_names"], oracle["final_stats"], strict=True):
        own = keys.converted({key: torch.zeros(1)})
        if own:
            value = net.get_parameter(next(iter(own))).detach().double().flatten()
            ends = F.pad(value, (0, 12 - len(value))) if len(value) < 6 else torch.cat([value[:6], value[-6:]])
            found = torch.cat([torch.stack([value.square().sum(), value.abs().max()]), ends])
            assert torch.allclose(found, wanted[1:], rtol=1e-9, atol=1e-9), key
            checked += 1
    assert checked > 300


def open_blip_vqa(oracle: Oracle, config: Mapping[str, int], prefix: str, folder: Path) -> Any:
    """Our BlipVQA with a recorded model's weights, in float64."""
    blip = importlib.import_module("vlbench.registry.blip")
    keys = importlib.import_module("vlbench.registry._blip_keys")
    words = oracle.facts["vocab"]
    BertTokenizer(vocab={w: i for i, w in enumerate(words[:58])}).save_pretrained(folder)
    model = blip.BlipVQA.build(blip.BlipVQA.cards[0], blip_config(config), folder)
    load_into(model.net, keys.converted(oracle.tensors(prefix)))
    model.net.double()
    return model


def blip_config(c: Mapping[str, int]) -> dict[str, Any]:
    """A configuration of transformers from the dims the recordings state."""
    return {
        "image_text_hidden_size": c.get("embed", 256),
        "vision_config": {
            "hidden_size": c["vw"], "intermediate_size": c["vw"] * c["vmlp"], "num_hidden_layers": c["vd"],
            "num_attention_heads": c["vh"], "image_size": c["img"], "patch_size": c.get("patch", 16),
            "layer_norm_eps": 1e-6,
        },
        "text_config": {
            "vocab_size": 60, "hidden_size": c["th"], "encoder_hidden_size": c["vw"],
            "intermediate_size": c["inter"], "num_hidden_layers": c["layers"], "num_attention_heads": c["heads"],
            "max_position_embeddings": c.get("positions", 40), "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0, "bos_token_id": 58, "pad_token_id": 0, "sep_token_id": 3,
        },
    }  # fmt: skip
