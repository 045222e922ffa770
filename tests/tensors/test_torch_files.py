"""torch.save's files: what is refused by name. What is read stands in test_reading.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlbench.errors import UserError
from vlbench.tensors.reading import read_weights


def test_two_sets_of_the_same_weights_are_told(tmp_path: Path) -> None:
    """A training's weights and their average: accuracies differ by points, and timm reads the average."""
    weights = {"a.weight": torch.ones(2, 2)}
    torch.save(
        {"model": weights, "model_ema": {"module.a.weight": torch.zeros(2, 2)}, "epoch": 3}, tmp_path / "two.pth"
    )
    with pytest.raises(UserError, match=r"two.pth holds two sets of weights, model and model_ema: save the one"):
        read_weights(tmp_path / "two.pth")
    torch.save({"model": weights, "optimizer": {"state": {}}}, tmp_path / "one.pth")
    assert read_weights(tmp_path / "one.pth").keys() == weights.keys()


def test_a_torchscript_archive_is_called_by_its_name(tmp_path: Path) -> None:
    """And what the sentence advises gives weights that are read."""
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), tmp_path / "clip.pt")
    with pytest.raises(UserError) as caught:
        read_weights(tmp_path / "clip.pt")
    told = str(caught.value)
    assert "is a TorchScript archive" in told
    torch.save(torch.jit.load(tmp_path / "clip.pt", "cpu").state_dict(), tmp_path / "tensors.pt")
    assert read_weights(tmp_path / "tensors.pt").keys() == {"weight", "bias"}
