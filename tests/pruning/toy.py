"""The originals' two residual blocks as a model that one-shot pruners are run on, without data or a task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlbench.calibration.data import LearningData
from vlbench.job import Job, Surroundings
from vlbench.plugins.table import table
from vlbench.structure import Block, Structure, Tower, ffn_site


class Residual(nn.Module):
    """x + fc2(relu(fc1 x)), without biases: the originals' toy block."""

    def __init__(self, up: Tensor, down: Tensor) -> None:
        super().__init__()
        self.fc1 = nn.Linear(up.shape[1], up.shape[0], bias=False)
        self.fc2 = nn.Linear(down.shape[1], down.shape[0], bias=False)
        self.fc1.weight.data, self.fc2.weight.data = up.clone(), down.clone()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.fc2(torch.relu(self.fc1(x)))
        return out


def chain_of(
    weights: list[tuple[Tensor, Tensor]], towers: Mapping[str, int] | None = None
) -> tuple[nn.Module, Structure]:
    """Residual blocks in a row. towers: name -> how many of them; a tower called vision is of that modality."""
    net = nn.Sequential(*(Residual(up, down) for up, down in weights))
    found, number = [], 0
    for name, count in (towers or {"mlp": len(weights)}).items():
        modality, blocks = ("vision" if name == "vision" else "language"), []
        for i in range(number, number + count):
            site = ffn_site(
                net, f"{name}.{i}", modality=modality, up=f"{i}.fc1", down=f"{i}.fc2", activation=torch.relu
            )
            blocks.append(Block(str(i), (site,)))
        number += count
        found.append(Tower(name, tuple(blocks)))
    return net, Structure(tuple(found))


def two_blocks(
    arrays: Mapping[str, np.ndarray], towers: Mapping[str, int] | None = None
) -> tuple[nn.Module, Structure]:
    """The recorded model of mlp2_sequential_* and ressa_*."""
    pairs = [tuple(torch.from_numpy(arrays[f"b{i}_{part}"]) for part in ("fc1", "fc2")) for i in (0, 1)]
    return chain_of(pairs, towers)  # type: ignore[arg-type]


def random_blocks(
    *sizes: tuple[int, int], towers: Mapping[str, int] | None = None, seed: int = 0
) -> tuple[nn.Module, Structure]:
    """sizes: (width, hidden) of every block; the widths are equal."""
    rng = torch.Generator().manual_seed(seed)
    pairs = [(torch.randn(h, w, generator=rng) / w**0.5, torch.randn(w, h, generator=rng) / h**0.5) for w, h in sizes]
    return chain_of(pairs, towers)


class ToyData(LearningData):
    """Rows of `inputs` in the place of a task's samples."""

    inputs: Tensor

    def calibration(self, count: int, batch_size: int = 32) -> list[Any]:
        parts = self.inputs[:count].split(batch_size)
        return [
            SimpleNamespace(x=x, samples=[SimpleNamespace(id=f"{n}.{i}") for i in range(len(x))])
            for n, x in enumerate(parts)
        ]


class ToyJob(Job):
    """A job whose calibration samples are the rows of `inputs` (samples, tokens, width); the loss is a mean square."""

    def __init__(self, net: nn.Module, structure: Structure, inputs: Tensor, folder: Path, seed: int = 0) -> None:
        model: Any = SimpleNamespace(
            net=net, structure=lambda: structure, device=torch.device("cpu"), image_tokens=lambda batch: None
        )
        task: Any = SimpleNamespace(capability="classify")
        super().__init__(model, task, cast(Any, None), Surroundings(seed, folder, identity={"toy": 1}))
        self.data, self.losses = ToyData(model, task, cast(Any, None), seed), 0
        self.data.inputs = inputs

    def loss(self, batch: Any) -> Tensor:
        self.losses += 1
        return F.mse_loss(self.model.net(batch.x), torch.zeros_like(batch.x))


def pruner(name: str, recipe: str = "", **words: Any) -> Any:
    """A method with the options of a recipe and these words."""
    cls = table("methods").get(name).load()
    values = {**(cls.recipes[recipe] if recipe else {}), **words}
    return cls(cls.Options.model_validate(values))


def zeros(net: nn.Module, structure: Structure) -> dict[str, float]:
    """Matrix -> fraction of zeros."""
    return {n: float((net.get_parameter(n) == 0).float().mean()) for n in structure.matrices}
