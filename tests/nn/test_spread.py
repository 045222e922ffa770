"""Bringing large models to the GPU, without one: weights in 16 bits, and splitting by accelerate on one device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.registry import prompted
from vlbench.errors import UserError
from vlbench.nn import spread


def test_buffers_keep_their_type(tmp_path: Path) -> None:
    """Angles of rotary positions in bfloat16 are wrong from the fourth token on."""
    model = prompted.build("llava-llama", tmp_path)
    model.net.float()
    angles = model.net.model.language_model.rotary_emb.inv_freq.clone()
    spread.halve(model.net)
    assert {p.dtype for p in model.net.parameters()} == {torch.bfloat16}
    assert torch.equal(model.net.model.language_model.rotary_emb.inv_freq, angles)


@pytest.mark.parametrize("name", prompted.NAMES)
def test_weights_in_16_bits_answer_and_learn(name: str, tmp_path: Path) -> None:
    """Close to those in 32 bits, and to the bit the same with autocast and without images in 16 bits."""
    model = prompted.build(name, tmp_path)
    model.net.float()
    batch = prompted.batch(decoding="rank", candidates=["red", "two", "d e"], k_test=3)
    batch.images = batch.images.float()
    with torch.no_grad():
        wanted = float(model.answer_loss(batch))
        spread.halve(model.net)
        assert float(model.answer_loss(batch)) == pytest.approx(wanted, rel=0.03)
        with torch.autocast("cpu", torch.bfloat16):
            assert float(model.answer_loss(batch)) == pytest.approx(wanted, rel=0.03)
            assert len(model.answer(model.encode(batch.images.bfloat16()), batch)) == 5
    model.answer_loss(batch).backward()
    assert all(model.net.get_parameter(name).grad is not None for name in model.structure().matrices)


def test_small_models_stay_in_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Linear(4, 4)
    spread.place(net, [], "bf16")
    assert net.weight.dtype == torch.float32
    monkeypatch.setattr(spread, "LARGE", 20)
    spread.place(net, [], "fp32")
    assert net.weight.dtype == torch.float32
    spread.place(net, [], "bf16")
    assert net.weight.dtype == torch.bfloat16


def test_what_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 floats and a fifth more are 96 bytes."""
    monkeypatch.setattr(spread, "computing_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(spread, "count", lambda: 1)
    monkeypatch.setattr(spread, "free_bytes", lambda _: 95)
    with pytest.raises(UserError, match=r"needs 8\.9e-08 GiB of GPU memory.*use precision=bf16, or one worker"):
        spread.place(nn.Linear(4, 4), [], "fp32")


@pytest.mark.parametrize("name", prompted.NAMES)
def test_a_split_model_answers_the_same(name: str, tmp_path: Path) -> None:
    """Through accelerate's hooks, with blocks whole."""
    pytest.importorskip("accelerate")
    model = prompted.build(name, tmp_path)
    batch = prompted.batch(decoding="generate", beams=2, max_length=5)
    blocks = [model.net.get_submodule(b.path) for tower in model.structure().towers for b in tower.blocks]
    with torch.no_grad():
        wanted = model.answer(model.encode(batch.images), batch), float(model.answer_loss(batch))
        spread.split(model.net, blocks, {"cpu": 10 * spread.size_of(model.net)})
        assert (model.answer(model.encode(batch.images), batch), float(model.answer_loss(batch))) == wanted
    with pytest.raises(UserError, match="use more GPUs"):
        spread.split(model.net, blocks, {"cpu": spread.size_of(model.net) // 2})


def test_weights_that_a_checkpoint_has_in_16_bits_stay_so_until_they_are_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Below LARGE; a step of 1e-4 is lost in a bfloat16 of 1."""
    net = nn.Sequential(nn.Linear(4, 4).bfloat16(), nn.LayerNorm(4))
    spread.place(net, [], "bf16")
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    net.requires_grad_(False)
    spread.widen_to_train(net)
    assert net[0].weight.dtype == torch.bfloat16
    net[0].requires_grad_(True)
    monkeypatch.setattr(spread, "LARGE", 20)
    spread.widen_to_train(net)
    assert net[0].weight.dtype == torch.bfloat16
    monkeypatch.setattr(spread, "LARGE", 1000)
    spread.widen_to_train(net)
    assert {p.dtype for p in net.parameters()} == {torch.float32}
