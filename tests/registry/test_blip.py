"""BLIP's question answering against the original code's outputs (float64)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracles import Oracle, open_blip_vqa
from vlbench.model import Batch
from vlbench.task import Sample


@pytest.fixture(scope="module")
def vqa(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Oracle, Any]:
    oracle = Oracle(shared / "oracles" / "models" / "blip_vqa_eval_a.npz")
    config = oracle.facts["config"]
    return oracle, open_blip_vqa(oracle, config, "sd/", tmp_path_factory.mktemp("blip"))


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
        assert close(model.answer_loss(batch), oracle["out/train/loss"])
