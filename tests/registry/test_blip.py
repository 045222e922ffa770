"""BLIP's question answering against the original code's outputs (float64)."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertTokenizer

from vlbench.model import Batch
from vlbench.task import Sample
from vlbench.weights import load_into

blip = importlib.import_module("vlbench.registry.blip")
keys = importlib.import_module("vlbench.registry._blip_keys")


def config_of(facts: dict[str, Any]) -> dict[str, Any]:
    c = facts["config"]
    return {
        "vision_config": {
            "hidden_size": c["vw"], "intermediate_size": c["vw"] * c["vmlp"], "num_hidden_layers": c["vd"],
            "num_attention_heads": c["vh"], "image_size": c["img"], "patch_size": 16, "layer_norm_eps": 1e-6,
        },
        "text_config": {
            "vocab_size": 60, "hidden_size": c["th"], "encoder_hidden_size": c["vw"],
            "intermediate_size": c["inter"], "num_hidden_layers": c["layers"], "num_attention_heads": c["heads"],
            "max_position_embeddings": 40, "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0, "bos_token_id": facts["special"]["bos"] if "bos" in facts["special"]
            else facts["special"]["bos_DEC"], "pad_token_id": 0, "sep_token_id": 3, "eos_token_id": 3,
        },
    }  # fmt: skip


class Oracle:
    def __init__(self, shared: Path, name: str) -> None:
        file = shared / "oracles" / "models" / f"{name}.npz"
        self.arrays = np.load(file)
        self.facts: dict[str, Any] = json.loads(file.with_suffix(".json").read_text())

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    def weights(self, prefix: str) -> dict[str, Tensor]:
        return {
            k.removeprefix(prefix): torch.from_numpy(self.arrays[k]) for k in self.arrays.files if k.startswith(prefix)
        }


def open_oracle(oracle: Oracle, folder: Path) -> Any:
    """Our BlipVQA with the oracle's weights, in float64; texts of the question encoder keep their own width."""
    BertTokenizer(vocab={w: i for i, w in enumerate(oracle.facts["vocab"][:58])}).save_pretrained(folder)
    config = config_of(oracle.facts)
    model = blip.BlipVQA.build(blip.BlipVQA.cards[0], config, folder)
    load_into(model.net, keys.converted(oracle.weights("sd/")))
    model.net.double()
    return model


@pytest.fixture(scope="module")
def vqa(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Oracle, Any]:
    oracle = Oracle(shared, "blip_vqa_eval_a")
    return oracle, open_oracle(oracle, tmp_path_factory.mktemp("blip"))


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-9) -> bool:
    return torch.allclose(found, wanted.to(found.dtype), rtol=0, atol=tolerance)


def states(oracle: Oracle, model: Any) -> tuple[Tensor, Tensor]:
    owner = oracle["in/image_index"]
    with torch.no_grad():
        return model.question_states(model.encode(oracle["in/images"].double()), oracle.facts["questions"], owner)


def test_tokens_and_states_equal_the_original(vqa: tuple[Oracle, Any]) -> None:
    oracle, model = vqa
    with torch.no_grad():
        assert close(model.encode(oracle["in/images"].double()), oracle["out/image_embeds"])
    questions, mask = states(oracle, model)
    assert torch.equal(mask, oracle["in/question_mask"])
    real = mask.bool()
    assert close(questions[real], oracle["out/question_states"][real])


@pytest.mark.parametrize(("k", "name"), [(8, "rank"), (20, "rank_all")])
def test_ranking_equals_the_original(vqa: tuple[Oracle, Any], k: int, name: str) -> None:
    oracle, model = vqa
    questions, mask = states(oracle, model)
    with torch.no_grad():
        score = model.rank(questions, mask, model.candidate_ids(oracle.facts["answer_list"]), k)
    assert torch.equal(score.argmax(1), oracle[f"out/{name}/max_ids"].flatten())
    wanted = oracle[f"out/{name}/log_probs_sum"]
    ids = torch.arange(20).expand(6, -1) if name == "rank_all" else oracle["out/rank/topk_ids"]
    assert close(score.gather(1, ids), wanted)
    assert torch.equal(score.isfinite().sum(1), torch.full((6,), k))


def test_generated_answers_equal_the_original(vqa: tuple[Oracle, Any]) -> None:
    oracle, model = vqa
    questions, _ = states(oracle, model)
    assert model.generate(questions) == oracle.facts["generated_answers"]


def test_training_loss_equals_the_original(vqa: tuple[Oracle, Any]) -> None:
    oracle, model = vqa
    answers, weights = iter(oracle.facts["train_answers"]), iter(oracle.facts["weights"])
    samples = [
        Sample(str(i), (), question, {next(answers): next(weights) for _ in range(n)})
        for i, (question, n) in enumerate(zip(oracle.facts["questions"], oracle.facts["n"], strict=True))
    ]
    batch = Batch(samples, oracle["in/images"].double(), oracle["in/image_index"][:, None])
    with torch.no_grad():
        assert close(model.answer_loss(batch), oracle["out/train/loss"], 1e-6)
