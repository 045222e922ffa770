"""BLIP's NLVR2 head against the original code's outputs (float64), dense and cut by UPop's own compress()."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.oracles import Oracle
from tests.registry.test_blip import close, opened, recorded
from vlbench.capability import Batch
from vlbench.task import Sample


@pytest.fixture(scope="module", params=recorded("blip_nlvr_eval") + recorded("blip_nlvr_compressed"))
def judge(request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Oracle, Any]:
    oracle = Oracle(shared / "oracles" / "models" / f"{request.param}.npz")
    prefix = "ckpt/" if "compressed" in request.param else "sd/"
    return oracle, opened("blip-nlvr", oracle, prefix, tmp_path_factory.mktemp("nlvr"))


def batch_of(oracle: Oracle) -> Batch:
    """The pairs, their images in one list as the original joins them: all left ones, then all right ones."""
    n = len(oracle.facts["texts"])
    targets = oracle["in/targets"].bool().tolist()
    told = zip(oracle.facts["texts"], targets, strict=True)
    samples = [Sample(str(i), (), text, target) for i, (text, target) in enumerate(told)]
    images = torch.cat([oracle["in/image0"], oracle["in/image1"]]).double()
    return Batch(samples, images, torch.stack([torch.arange(n), torch.arange(n, 2 * n)], 1))


def test_states_and_answers_equal_the_original(judge: tuple[Oracle, Any]) -> None:
    oracle, model = judge
    batch = batch_of(oracle)
    with torch.no_grad():
        images = model.encode(batch.images)
        hidden, mask = model.text_states(images, oracle.facts["texts"], batch.owner)
        logits = model.logits(images, oracle.facts["texts"], batch.owner)
        answers = [a["answer"] for a in model.judge(images, batch)]
        loss = model.judge_loss(batch)
    assert close(images, oracle["out/image_embeds"])
    assert torch.equal(mask, oracle["in/text_mask"])
    assert close(hidden[mask.bool()], oracle["out/text_hidden"][mask.bool()])
    assert close(logits, oracle["out/logits"])
    assert close(loss, oracle["out/loss"])
    right = [a == s.target for a, s in zip(answers, batch.samples, strict=True)]
    assert sum(right) / len(right) == pytest.approx(float(oracle["out/acc"]), abs=1e-12)


def test_images_in_any_order_and_shared(judge: tuple[Oracle, Any]) -> None:
    """Each distinct image once, pairs that share images, and the same pair the other way round."""
    oracle, model = judge
    batch = batch_of(oracle)
    n = len(batch.samples)
    pairs = [(0, n), (n, 0), (1, n), (0, 0), (2 * n - 1, 1)]
    texts = [oracle.facts["texts"][i % n] for i in range(len(pairs))]
    order = torch.arange(2 * n).flip(0)
    with torch.no_grad():
        one_by_one = [
            model.logits(model.encode(batch.images[list(pair)]), [text], torch.tensor([[0, 1]]))
            for pair, text in zip(pairs, texts, strict=True)
        ]
        together = model.logits(model.encode(batch.images[order]), texts, 2 * n - 1 - torch.tensor(pairs))
    assert close(together, torch.cat(one_by_one), 1e-12)


def test_both_kinds_of_fusion_are_there(judge: tuple[Oracle, Any]) -> None:
    """Layers below 6 average, the others merge: told by the file's own tensors."""
    _, model = judge
    merging = [hasattr(layer.crossattention.output, "merge_layer") for layer in model.net.text_encoder.encoder.layer]
    assert merging == [index >= 6 for index in range(len(merging))]
    assert model.config["merge_from"] == 6
